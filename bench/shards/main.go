// Shards has the records of a day of mail made, and prints how they lie on a
// cluster: how many its fullest slot and its fullest master have, as multiples of
// the mean. With redis-server at hand a part of them is stored there, for what a
// record takes.
//
//	go run ./bench/shards [-records N] [-stored N] [-sigma F]
package main

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"iter"
	"log"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/greylist/redis"

	goredis "github.com/redis/go-redis/v9"
)

const (
	mailboxes = 200_000
	domains   = 50_000 // of senders
	slots     = 16384
	masters   = 3
)

func main() {
	log.SetFlags(0)
	records := flag.Int("records", 10_000_000, "that a day makes")
	stored := flag.Int("stored", 300_000, "of them on a server")
	sigma := flag.Float64("sigma", 0.75, "of the logarithm of what mailboxes get: 0 is all alike")
	flag.Parse()
	d := newDay(*sigma)
	c := &counter{}
	g := greylist.New(greylist.Options{Store: c, Secret: secret})
	mails := 0
	for c.records < *records {
		if _, err := g.Decide(context.Background(), d.attempt()); err != nil {
			log.Fatal(err)
		}
		mails++
	}
	fmt.Printf("%d records of %d mails that wait, %d of them of one provider; %d mailboxes, the busiest gets %.0f times the mean\n",
		c.records, mails, d.provider, mailboxes, d.busiest)
	mean := float64(c.records) / slots
	fmt.Printf("fullest slot %.2f times the mean of %.0f, emptiest %.2f\n", float64(slices.Max(c.slots[:]))/mean, mean, float64(slices.Min(c.slots[:]))/mean)
	var of [masters]int
	for i, n := range c.slots {
		of[i*masters/slots] += n
	}
	fmt.Printf("fullest of %d masters %.3f times the mean\n", masters, float64(slices.Max(of[:]))*masters/float64(c.records))
	fmt.Printf("keys of a decision in %.1f shards, of which it writes %.1f\n", float64(c.read)/float64(mails), float64(c.wrote)/float64(mails))
	if err := onServer(*stored, newDay(*sigma)); err != nil {
		log.Fatal(err)
	}
}

func secret() ([]byte, error) { return []byte("0123456789abcdef0123456789abcdef"), nil }

// A day is mail as it comes.
type day struct {
	r        *rand.Rand
	weights  []float64 // of mailboxes, summed up
	busiest  float64
	now      time.Time
	provider int
}

func newDay(sigma float64) *day {
	d := &day{r: rand.New(rand.NewPCG(1, 2)), now: time.Unix(1_800_000_000, 0)}
	sum, most := 0.0, 0.0
	for range mailboxes {
		w := math.Exp(sigma * d.r.NormFloat64())
		most = max(most, w)
		sum += w
		d.weights = append(d.weights, sum)
	}
	d.busiest = most / sum * mailboxes
	return d
}

func (d *day) mailbox() string {
	at, _ := slices.BinarySearch(d.weights, d.r.Float64()*d.weights[mailboxes-1])
	return fmt.Sprintf("user.%s@rcpt%d.example", letters(at), at%500)
}

// attempt is the first of a message: three of ten of one large provider, whose
// machines it comes from by turns; three of machines that send spam; the others of
// mail servers of many domains.
func (d *day) attempt() greylist.Attempt {
	d.now = d.now.Add(20 * time.Millisecond)
	a := greylist.Attempt{Time: d.now, Rcpts: []string{d.mailbox()}}
	addr := func(a, nets int) netip.Addr {
		n := d.r.IntN(nets)
		return netip.AddrFrom4([4]byte{byte(a), byte(n >> 8), byte(n), byte(1 + d.r.IntN(250))})
	}
	from := letters(d.r.IntN(1 << 40))
	switch k := d.r.IntN(10); {
	case k < 3:
		d.provider++
		a.Sender = from + "@provider.example"
		a.Client = greylist.Client{Addr: addr(20, 400), Name: "mail.provider.example", Domain: "provider.example"}
		a.Junked = true // else it would not wait
		a.SPF = greylist.SPFResult{Status: greylist.SPFPass, Domain: "provider.example", Frees: true}
	case k < 6:
		a.Sender = from + "@" + letters(d.r.IntN(domains)) + ".example"
		a.Client = greylist.Client{Addr: addr(30+d.r.IntN(150), 65536), Class: greylist.NoName}
	default:
		domain := d.r.IntN(domains)
		name := letters(domain) + ".example"
		a.Sender = from + "@" + name
		a.Client = greylist.Client{Addr: netip.AddrFrom4([4]byte{190, byte(domain >> 8), byte(domain), 9}), Name: "mx." + name, Domain: name, Class: greylist.Generic}
		if d.r.IntN(2) == 0 {
			a.SPF = greylist.SPFResult{Status: greylist.SPFPass, Domain: name, Frees: true}
		}
	}
	return a
}

// letters writes a number without digits, which would be taken for a serial.
func letters(n int) string {
	b := []byte{byte('a' + n%26)}
	for n /= 26; n > 0; n /= 26 {
		b = append(b, byte('a'+n%26))
	}
	return string(b)
}

// A counter is a store that holds nothing and counts where it would. What clients
// and domains are counted by, of which there are few, is counted once for each.
type counter struct {
	records     int
	slots       [slots]int
	read, wrote int
	once        map[greylist.Key]bool
}

func (c *counter) Update(_ context.Context, keys []greylist.Key, f func([]greylist.Record)) error {
	recs := make([]greylist.Record, len(keys))
	f(recs)
	if c.once == nil {
		c.once = make(map[greylist.Key]bool)
	}
	read, wrote := make(map[[2]byte]bool), make(map[[2]byte]bool)
	for i, k := range keys {
		read[k.Shard()] = true
		if recs[i].State == greylist.Absent {
			continue
		}
		wrote[k.Shard()] = true
		if k.Kind() != greylist.KindAttempt && k.Kind() != greylist.KindPair {
			if c.once[k] {
				continue
			}
			c.once[k] = true
		}
		c.records++
		c.slots[slot(k)]++
	}
	c.read += len(read)
	c.wrote += len(wrote)
	return nil
}

func (c *counter) Get(context.Context, []greylist.Key) ([]greylist.Record, error) { return nil, nil }
func (c *counter) All(context.Context) iter.Seq2[greylist.Entry, error] {
	return func(func(greylist.Entry, error) bool) {}
}
func (c *counter) Sweep(context.Context, func(greylist.Key, greylist.Record) bool) (int, bool, error) {
	return 0, true, nil
}
func (c *counter) Count(context.Context, map[string]int64) (map[string]int64, error) { return nil, nil }
func (c *counter) Close() error                                                      { return nil }

// slot is that of a cluster: CRC16 (XMODEM) of what is in the braces of a name.
func slot(k greylist.Key) int {
	shard := k.Shard()
	var crc uint16
	for _, b := range []byte(hex.EncodeToString(shard[:])) {
		crc ^= uint16(b) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc % slots)
}

// onServer stores the records of some mail on a server of its own.
func onServer(records int, d *day) error {
	path, err := exec.LookPath("redis-server")
	if err != nil || records == 0 {
		fmt.Println("redis-server is not installed, or not wanted: what a record takes is not measured")
		return nil
	}
	dir, err := os.MkdirTemp("", "shards")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	cmd := exec.Command(path, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no")
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	client := goredis.NewClient(&goredis.Options{Network: "unix", Addr: socket})
	defer client.Close()
	ctx := context.Background()
	for n := 0; client.Ping(ctx).Err() != nil; n++ {
		if n == 500 {
			return fmt.Errorf("redis-server does not answer")
		}
		time.Sleep(10 * time.Millisecond)
	}
	location, err := redis.ParseURL("redis+unix://" + socket)
	if err != nil {
		return err
	}
	for _, clear := range []bool{false, true} {
		if err := client.FlushAll(ctx).Err(); err != nil {
			return err
		}
		before, err := used(ctx, client)
		if err != nil {
			return err
		}
		s, err := redis.Open(redis.Options{Location: location, Wait: time.Minute})
		if err != nil {
			return err
		}
		g := greylist.New(greylist.Options{Store: s, Secret: secret, Clear: clear})
		var size int64
		for n := 0; size < int64(records); n++ {
			if _, err := g.Decide(ctx, d.attempt()); err != nil {
				return err
			}
			if n%1000 == 0 {
				if size, err = client.DBSize(ctx).Result(); err != nil {
					return err
				}
			}
		}
		s.Close()
		after, err := used(ctx, client)
		if err != nil {
			return err
		}
		what := "keys and times"
		if clear {
			what = "addresses too"
		}
		fmt.Printf("%d records on redis-server, %s: %.0f bytes each\n", size, what, float64(after-before)/float64(size))
	}
	return nil
}

func used(ctx context.Context, c *goredis.Client) (n int64, err error) {
	text, err := c.Info(ctx, "memory").Result()
	_, rest, _ := strings.Cut(text, "\nused_memory:")
	fmt.Sscan(rest, &n)
	return n, err
}
