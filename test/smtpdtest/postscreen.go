//go:build linux

package smtpdtest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const postscreenCF = `
compatibility_level = 3.6
queue_directory = @DIR@/spool
data_directory = @DIR@/data
daemon_directory = @ROOT@/usr/lib/postfix/sbin
command_directory = @ROOT@/usr/sbin
shlib_directory = no
meta_directory = @DIR@
mail_owner = mail
setgid_group = staff
import_environment = MAIL_CONFIG LD_LIBRARY_PATH
export_environment = MAIL_CONFIG LD_LIBRARY_PATH
maillog_file = @DIR@/log
maillog_file_prefixes = @DIR@
myhostname = screen.example
inet_interfaces = all
inet_protocols = all
alias_maps =
alias_database =
postscreen_cache_map =
postscreen_access_list =
postscreen_greet_banner =
postscreen_greet_wait = 3s
postscreen_client_connection_count_limit = 100
postscreen_dnsbl_action = drop
postscreen_dnsbl_threshold = 1
postscreen_dnsbl_sites = @SITES@
`

const postscreenMasterCF = `@PORT@  inet  n  -  n  -  1  postscreen
smtpd   pass  -  -  n  -  -  smtpd
dnsblog unix  -  -  n  -  0  dnsblog
postlog unix-dgram  n  -  n  -  1  postlogd
`

// ListedAll is a zone in which every client must be listed: postscreen only says
// scores above 0, so it gets this one with a weight that is taken off again.
const (
	ListedAll     = "base.example"
	listedWeight  = 100
	postscreenTCP = 2525
)

// Postscreen starts a postscreen of Postfix with a value of postscreen_dnsbl_sites,
// connects to it from each address, one each pace, and returns the scores and how long it took from
// the connection to its answer: all are refused. Lists are asked by resolv.conf(5).
func Postscreen(sites string, clients []netip.Addr, pace time.Duration) (scores map[netip.Addr]int, took time.Duration, err error) {
	dir, err := os.MkdirTemp("", "postscreen")
	if err != nil {
		return nil, 0, err
	}
	p := &Postfix{dir: dir}
	defer os.RemoveAll(dir)
	if err := p.prepare("screen.example", Addr4); err != nil {
		return nil, 0, err
	}
	sites = strings.Join(strings.FieldsFunc(sites, func(r rune) bool { return strings.ContainsRune(" \t\n,", r) }), " ")
	r := strings.NewReplacer("@DIR@", dir, "@ROOT@", postfixRoot, "@PORT@", strconv.Itoa(postscreenTCP),
		"@SITES@", fmt.Sprintf("%s %s*%d", sites, ListedAll, listedWeight))
	for file, text := range map[string]string{"main.cf": postscreenCF, "master.cf": postscreenMasterCF} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(r.Replace(text)), 0o644); err != nil {
			return nil, 0, err
		}
	}
	p.cmd = p.command("usr/lib/postfix/sbin/master", "-c", dir, "-d")
	if err := p.cmd.Start(); err != nil {
		return nil, 0, err
	}
	defer func() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM)
		_ = p.cmd.Wait()
	}()

	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			d, e := answered(c)
			mu.Lock()
			defer mu.Unlock()
			took = max(took, d)
			if e != nil && err == nil {
				err = fmt.Errorf("%v: %w", c, e)
			}
		})
		if i == 0 {
			wg.Wait() // its daemons have started
		}
		time.Sleep(pace)
	}
	wg.Wait()
	if strings.Contains(p.Log(), "psc_dnsbl_request") { // too fast for it: it has not asked all lists
		return nil, 0, ErrBusy
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%w\n%s", err, p.Log())
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		scores = make(map[netip.Addr]int)
		for _, m := range rank.FindAllStringSubmatch(p.Log(), -1) {
			n, _ := strconv.Atoi(m[1])
			if a, err := netip.ParseAddr(m[2]); err == nil {
				scores[a] = n - listedWeight
			}
		}
		if len(scores) == len(clients) {
			return scores, took, nil
		}
	}
	return nil, 0, fmt.Errorf("postscreen has said %d scores of %d\n%s", len(scores), len(clients), p.Log())
}

// ErrBusy is that postscreen could not ask all lists.
var ErrBusy = errors.New("postscreen is too busy to ask")

var rank = regexp.MustCompile(`DNSBL rank (-?[0-9]+) for \[([0-9a-fA-F.:]+)\]`)

// answered connects from an address and waits to be refused.
func answered(from netip.Addr) (time.Duration, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: patience}
	to := Addr4
	if from.Is6() {
		to = Addr6
	}
	var conn net.Conn
	var err error
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if conn, err = d.Dial("tcp", net.JoinHostPort(to, strconv.Itoa(postscreenTCP))); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	start := time.Now()
	_ = conn.SetDeadline(start.Add(20 * time.Second))
	// The answer may be lost with the connection; a silence is none.
	if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, err
	}
	return time.Since(start), nil
}
