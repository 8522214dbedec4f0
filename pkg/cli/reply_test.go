package cli

import "testing"

func TestReply(t *testing.T) {
	for _, tt := range []struct{ in, want, temporary string }{
		{"554 no", "554 no", "451 no"},
		{"550 5.7.1 %i is a %c", "550 5.7.1 192.0.2.1 is a dynamic", "451 4.7.1 192.0.2.1 is a dynamic"},
		{"421 4.3.2 later", "421 4.3.2 later", "421 4.3.2 later"},
		{"550 100%% %i|%%i", "550 100% 192.0.2.1|%i", "451 100% 192.0.2.1|%i"},
		{"550 5.7.1.1 x", "550 5.7.1.1 x", "451 5.7.1.1 x"},
		{"550 5.7.1000 x", "550 5.7.1000 x", "451 5.7.1000 x"},
	} {
		r, err := ParseReply(tt.in, "ic")
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		r = r.Expand("%i", "192.0.2.1", "%c", "dynamic")
		if r.String() != tt.want || r.Temporary().String() != tt.temporary {
			t.Errorf("%q: %q and %q, want %q and %q", tt.in, r, r.Temporary(), tt.want, tt.temporary)
		}
	}
	for _, in := range []string{"no", "550", "550 ", "250 ok", "600 x", "55 x", "5500 x", "550-5.7.1 x", "550 4.7.1 x", "550 5.7.1", "550 5.7.1 ", "550 %", "550 %x", "550 100%"} {
		if r, err := ParseReply(in, "ic"); err == nil {
			t.Errorf("%q is read as %+v", in, r)
		}
	}
	r, err := ParseReply("550 %r %%c", "rc")
	if err != nil || !r.Has("%r") || r.Has("%c") {
		t.Errorf("%q: %v, has %%r %v, has %%c %v", r, err, r.Has("%r"), r.Has("%c"))
	}
}
