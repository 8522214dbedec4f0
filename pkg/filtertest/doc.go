// Package filtertest plays smtpd for tests of filters, and watches them as smtpd would.
//
// It knows the protocol by itself, strictly, and uses nothing else of this module, so that a mistake in the
// library that filters are built on is not repeated here. [Checker] holds the rules, [Program] and [Peer] run a
// filter, [Replay] and [Hostile] feed it recorded and malicious input, [DNS] is the name server it asks.
//
// A filter's tests begin with
//
//	func TestMain(m *testing.M) {
//		filtertest.Main(m, map[string]func(){"filter-dyndns": main})
//	}
//
//	func TestDialogues(t *testing.T) { testscript.Run(t, filtertest.Params("testdata")) }
//	func TestTraces(t *testing.T)    { filtertest.ReplayTraces(t, "filter-dyndns") }
//	func TestHostile(t *testing.T)   { filtertest.Hostile(t, "filter-dyndns") }
//
// # Dialogues
//
// A dialogue is what smtpd and a filter say to each other. In a testscript file:
//
//	dns zone
//	dialogue d -- filter-dyndns -resolver $DNS -dynamic reject
//
//	-- zone --
//	7.100.51.198.in-addr.arpa PTR host-198-51-100-7.dyn.example.net
//	-- d --
//	version 0.6
//	connect s1 198.51.100.7 host-198-51-100-7.dyn.example.net
//	ehlo s1 client.example.net
//	mail s1 sender@example.net
//	< s1 mail-from reject|550 5.7.1 no
//	~ {s1} filter=dyndns action=reject
//	quit s1
//
// One step a line; empty lines and lines that begin with # are skipped. NAME stands for a session: up to eight lower
// case letters and digits, or a session identifier of 16 digits.
//
//	version V                     first step only: smtpd's protocol, 0.4 to 0.7 (0.7)
//	at D, at +D                   the time stamps go on D after the start, or D later ("at 60s")
//	> NAME EVENT|PHASE [FIELDS]   smtpd reports an event, or asks for a phase
//	< NAME PHASE DECISION[|PARAM] the filter's answer
//	< NAME data-line LINE         a line of the message that the filter returns
//	! NAME                        no answer yet, and none before the next step that names this session
//	~ REGEXP                      a line of standard error that no earlier ~ took
//	!~ REGEXP                     no such line until the end
//	>> LINE, << LINE              the same as > and <, raw; << register|... asks for a registration
//	dns FILE                      the name server goes on with another script
//	eof                           the end of the filter's input
//	exit N                        eof, and its exit status
//
// In raw lines and expressions {NAME} is the session identifier, {PHASE} the token of a phase, {version} and
// {now} the fields of those names.
//
// Steps that are a client's doings, with all reports and requests of smtpd in the order and form of the version, as
// far as the filter's answers let it come:
//
//	connect NAME ADDRESS|local [RDNS [FCRDNS]]   (<unknown> fail; FCRDNS pass if there is a name)
//	ehlo NAME HOST, helo NAME HOST
//	starttls NAME
//	auth NAME USER [pass|fail|error]
//	mail NAME [SENDER]
//	rcpt NAME RECIPIENT [ok|tempfail|permfail]
//	message NAME FILE [FILE]      DATA to commit; what the filter must return if it is not the same
//	rset NAME, quit NAME, gone NAME
//
// The filter gets only what it registered. A session is never told or asked anything while it waits for an
// answer; a step waits for it. Answers of one session must come in order, those of different sessions need not.
// An answer that no step names must be proceed, a data line that none names an echo. The last step is followed by
// exit 0, and by the Checker's verdict.
//
// There is no waiting for nothing to happen: ! notices an early answer when the session's next step is reached at
// the latest. Put a step between that takes the filter a round trip.
package filtertest
