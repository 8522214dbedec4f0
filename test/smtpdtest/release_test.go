//go:build linux

package smtpdtest

import "testing"

func TestReleaseIs(t *testing.T) {
	for _, tt := range []struct {
		release Release
		line    string
		want    bool
	}{
		{Release{Version: "6.8.0p2"}, "version: OpenSMTPD 6.8.0p2", true},
		{Release{Version: "7.6.0"}, "version: OpenSMTPD 7.6.0-portable", true},
		{Release{Version: "7.6.0"}, "version: OpenSMTPD 7.7.0-portable", false},
		{Release{Version: "7.6.0"}, "", false},
		{Release{Version: "7.9.0", Moving: true}, "version: OpenSMTPD 7.9.0-portable", true},
		{Release{Version: "7.9.0", Moving: true}, "version: OpenSMTPD 7.10.0p1", true},
		{Release{Version: "7.9.0", Moving: true}, "version: OpenSMTPD 7.8.0p1", false},
		{Release{Version: "7.9.0", Moving: true}, "sh: smtpd: not found", false},
	} {
		if got := tt.release.is(tt.line); got != tt.want {
			t.Errorf("%v is %q: %v, want %v", tt.release.Version, tt.line, got, tt.want)
		}
	}
}
