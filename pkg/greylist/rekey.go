package greylist

import "context"

// keysVersion is the counter of the version that keys have; theirs is the second.
const (
	keysVersion = "keys"
	keysNow     = 2
)

// rekey gives records of earlier versions the keys they would have now, as far as
// they are stored in clear: others are not found any more, and expire. That was
// done when the counter says so.
func (g *Greylist) rekey(ctx context.Context) error {
	counts, err := g.store.Count(ctx, nil)
	if err != nil || counts[keysVersion] >= keysNow {
		return err
	}
	h, err := g.hash()
	if err != nil {
		return err
	}
	for e, err := range g.store.All(ctx) {
		if err != nil {
			return err
		}
		r := e.Record
		if r.Origin == "" && r.Sender == "" && r.Rcpt == "" {
			continue
		}
		key := h.entry(e.Key.Kind(), r.Origin, r.Sender, r.Rcpt).Key
		if key == e.Key {
			continue
		}
		if err := g.store.Update(ctx, []Key{e.Key, key}, move); err != nil {
			return err
		}
	}
	_, err = g.store.Count(ctx, map[string]int64{keysVersion: keysNow - counts[keysVersion]})
	return err
}

// move makes the second record the first, unless it says more itself.
func move(recs []Record) {
	from, to := &recs[0], &recs[1]
	switch {
	case from.State == Absent:
	case to.State == Grey && from.State == Grey:
		to.First, to.Tries = min(to.First, from.First), to.Tries+from.Tries
	case to.State == Absent || newer(*from, *to):
		*to = *from
	}
	*from = Record{}
}
