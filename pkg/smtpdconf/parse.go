package smtpdconf

import (
	"fmt"
	"strings"
)

// A parser follows the grammar of smtpd.conf where it is about filters.
type parser struct {
	*Config
	lexer
	ahead *token // read too early
}

// Statements that are skipped.
var others = map[string]bool{
	"admd": true, "bounce": true, "ca": true, "match": true, "mda": true, "mta": true, "pki": true,
	"queue": true, "scheduler": true, "smtp": true, "srs": true, "table": true,
}

// errSyntax is told where something else should stand.
const errSyntax = "syntax error"

// A stop ends a statement that is wrong; what is wrong has been told.
type stop struct{}

func (p *parser) read() token {
	if t := p.ahead; t != nil {
		p.ahead = nil
		return *t
	}
	return p.next()
}

func (p *parser) peek() token {
	t := p.read()
	p.ahead = &t
	return t
}

// all reads all statements.
func (p *parser) all() {
	for {
		t := p.read()
		switch {
		case t.kind == end:
			return
		case t.is('\n'):
		default:
			p.statement(t)
		}
	}
}

// statement reads one statement, or the line that is wrong.
func (p *parser) statement(first token) {
	defer func() {
		switch e := recover(); e.(type) {
		case nil:
		case stop:
			p.skip()
		default:
			panic(e)
		}
	}()
	at := Place{p.file().name, first.line}
	switch {
	case first.kind == str:
		p.macro(first.text)
	case first.kind != keyword:
		p.wrong(errSyntax)
	case first.text == "include":
		p.includes()
		return // the newline is that of the file
	case first.text == "filter":
		p.filter(at)
	case first.text == "proc":
		p.process(at)
	case first.text == "listen":
		p.listen(at)
	case first.text == "action":
		p.action(at)
	case others[first.text]:
		p.rest(nil)
	default:
		p.wrong(errSyntax)
	}
	if t := p.peek(); !t.is('\n') {
		p.wrong(errSyntax)
	}
}

// wrong ends a statement.
func (p *parser) wrong(format string, args ...any) {
	p.fail(format, args...)
	panic(stop{})
}

// skip goes to the end of a line that is wrong.
func (p *parser) skip() {
	for t := p.read(); t.kind != end && !t.is('\n'); t = p.read() {
	}
}

// string reads a string.
func (p *parser) string() string {
	t := p.read()
	if t.kind != str {
		p.unexpected(t)
	}
	return t.text
}

// unexpected ends a statement at a token that does not belong there.
func (p *parser) unexpected(t token) {
	p.ahead = &t
	p.wrong(errSyntax)
}

func (p *parser) keyword(word string) {
	if t := p.read(); !t.word(word) {
		p.unexpected(t)
	}
}

// take reads a byte if it is the next token.
func (p *parser) take(c byte) bool {
	if !p.peek().is(c) {
		return false
	}
	p.ahead = nil
	return true
}

// rest reads what is left of a statement, and calls each for every word of the
// grammar outside of braces. In braces a newline does not end it.
func (p *parser) rest(each func(keyword string)) (text string) {
	var words []string
	depth, opened := 0, Place{}
	for {
		t := p.peek()
		if t.kind == end || t.is('\n') && depth == 0 {
			break
		}
		p.ahead = nil
		switch {
		case t.is('{'):
			if depth++; depth == 1 {
				opened = Place{p.file().name, t.line}
			}
		case t.is('}'):
			depth--
		case t.is('\n'):
			continue
		case t.kind == bad:
			p.unexpected(t)
		case t.kind == keyword && depth == 0 && each != nil:
			each(t.text)
		}
		words = append(words, t.shown())
	}
	if depth > 0 {
		p.errs = append(p.errs, &Error{opened, "{ without }"})
	}
	return strings.Join(words, " ")
}

// shown returns a token as it may stand in a file.
func (t token) shown() string {
	switch {
	case t.kind == arrow:
		return "=>"
	case t.kind == str:
		return `"` + strings.ReplaceAll(t.text, `"`, `\"`) + `"`
	}
	return t.text
}

func (p *parser) macro(name string) {
	if !p.take('=') {
		p.unexpected(p.read())
	}
	value := p.string()
	if strings.ContainsAny(strings.TrimLeft(name, " \t"), " \t\n\v\f\r") {
		p.wrong("macro name cannot contain whitespace")
	}
	if _, ok := p.fixed[name]; !ok {
		p.macros[name] = value
	}
}

// includes goes on in another file, which begins with the newline of this
// statement.
func (p *parser) includes() {
	name := p.string()
	if err := p.lexer.include(name); err != nil {
		p.wrong("failed to include file %s: %v", name, err)
	}
	p.unread('\n')
}

func (p *parser) process(at Place) {
	proc := &Proc{Place: at, Name: p.string(), Command: p.string()}
	if p.proc(proc.Name) != nil {
		p.wrong("processor already exists with that name: %s", proc.Name)
	}
	p.params(proc)
	p.Procs = append(p.Procs, proc)
}

// params reads as whom a program runs.
func (p *parser) params(proc *Proc) {
	for {
		t := p.peek()
		var value *string
		switch {
		case t.word("user"):
			value = &proc.User
		case t.word("group"):
			value = &proc.Group
		case t.word("chroot"):
			value = &proc.Chroot
		default:
			return
		}
		p.ahead = nil
		s := p.string()
		if *value != "" {
			p.wrong("%s already specified for this processor", t.text)
		}
		*value = s
	}
}

func (p *parser) filter(at Place) {
	f := &Filter{Place: at, Name: p.string()}
	form := p.read()
	if form.kind != keyword {
		p.unexpected(form)
	}
	unique := func() {
		if p.Filter(f.Name) != nil {
			p.wrong("filter already exists with that name: %s", f.Name)
		}
	}
	switch form.text {
	case "proc":
		name := p.string()
		unique()
		if f.Proc = p.proc(name); f.Proc == nil {
			p.wrong("no processor exist with that name: %s", name)
		}
	case "proc-exec":
		f.Proc = &Proc{Place: at, Name: f.Name, Command: p.string()}
		unique()
		p.params(f.Proc)
		p.Procs = append(p.Procs, f.Proc)
	case "phase":
		unique()
		f.Phase = p.rest(nil)
	case "chain":
		unique()
		f.Chain = p.chain()
	default:
		p.unexpected(form)
	}
	p.Filters = append(p.Filters, f)
}

// chain reads the filters of a chain: names, between them a comma, newlines or
// nothing. Newlines behind a comma and a brace, and before one, are for OpenSMTPD
// 7.6 and later.
func (p *parser) chain() (chain []*Filter) {
	if !p.take('{') {
		p.unexpected(p.read())
	}
	p.newlines()
	for {
		name := p.string()
		f := p.Filter(name)
		switch {
		case f == nil:
			p.wrong("no filter exist with that name: %s", name)
		case f.Chain != nil:
			p.wrong("no filter chain allowed within a filter chain: %s", name)
		}
		for _, g := range chain {
			if g == f {
				p.wrong("no filter allowed twice within a filter chain: %s", name)
			}
			if f.Proc != nil && g.Proc == f.Proc {
				p.wrong("no proc allowed twice within a filter chain: %s", f.Proc.Name)
			}
		}
		chain = append(chain, f)
		p.newlines()
		switch {
		case p.take('}'):
			return chain
		case p.take(','):
			p.newlines()
		}
	}
}

func (p *parser) newlines() {
	for p.take('\n') {
	}
}

// use reads which filter a listener or an action has: a name or, in braces, a
// chain without one.
func (p *parser) use(at Place) *Filter {
	if p.peek().is('{') {
		return &Filter{Place: at, Chain: p.chain()}
	}
	name := p.string()
	f := p.Filter(name)
	if f == nil {
		p.wrong("no filter exist with that name: %s", name)
	}
	return f
}

func (p *parser) listen(at Place) {
	l := &Listener{Place: at}
	p.keyword("on")
	switch t := p.read(); {
	case t.word(socket) || t.kind == str:
		l.On = t.text
	default:
		p.unexpected(t)
	}
	p.rest(func(word string) {
		switch word {
		case "filter":
			if l.Filter != nil {
				p.wrong("filter already specified")
			}
			l.Filter = p.use(at)
		case "port":
			l.Port = p.read().text
		case "hostname":
			l.Hostname = p.string()
		case "smtps":
			l.SMTPS = true
		case "auth", "auth-optional":
			l.Auth = true
		}
	})
	p.Listeners = append(p.Listeners, l)
}

func (p *parser) action(at Place) {
	r := &Relay{Place: at, Action: p.string()}
	relay := false
	p.rest(func(word string) {
		switch {
		case word == "relay":
			relay = true
		case word == "filter" && relay:
			if r.Filter != nil {
				p.wrong("filter already specified for this dispatcher")
			}
			r.Filter = p.use(at)
		}
	})
	if r.Filter != nil {
		p.Relays = append(p.Relays, r)
	}
}

// String returns a filter as smtpd.conf calls it.
func (f *Filter) String() string {
	if f.Name != "" {
		return f.Name
	}
	var names []string
	for _, g := range f.Chain {
		names = append(names, g.Name)
	}
	return fmt.Sprintf("{ %s }", strings.Join(names, ", "))
}
