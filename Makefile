# Works with GNU make and with the make of the BSDs.

VERSION =	0.1
FILTERS =	filter-dnsbl filter-dyndns filter-greet filter-greylist filter-senderscore
PROGRAMS =	${FILTERS} filterctl

# smtpd looks for filters in LIBEXECDIR: /usr/libexec/opensmtpd in Debian,
# /usr/local/libexec/smtpd in OpenBSD, /usr/local/libexec/opensmtpd in FreeBSD,
# and in places of their own in Alpine and Arch.
PREFIX !=	case `uname -s` in Linux) echo /usr;; *) echo /usr/local;; esac
LIBEXECDIR !=	if [ -e /etc/alpine-release ]; then echo ${PREFIX}/lib/opensmtpd; \
		elif [ -e /etc/arch-release ]; then echo ${PREFIX}/lib/smtpd/opensmtpd; \
		elif [ `uname -s` = OpenBSD ]; then echo ${PREFIX}/libexec/smtpd; \
		else echo ${PREFIX}/libexec/opensmtpd; fi
SBINDIR =	${PREFIX}/sbin
MANDIR !=	case `uname -s` in OpenBSD) echo ${PREFIX}/man;; *) echo ${PREFIX}/share/man;; esac
DESTDIR =
BIN =		bin

# Where filters keep what a restart must not forget, and as whom smtpd runs them.
STATEDIR !=	case `uname -s` in Linux) echo /var/lib;; *) echo /var/db;; esac
FILTERUSER !=	for u in _smtpd opensmtpd smtpd; do if id -u $$u >/dev/null 2>&1; then break; fi; done; echo $$u

GO =		go
GOBUILD =	CGO_ENABLED=0 ${GO} build -trimpath -buildvcs=false -ldflags "-s -w -X opensmtpd-filters/pkg/cli.version=${VERSION}"
STATICCHECK =	${GO} run honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME =	1m
RECORDS =	5000000
SOAK =		3m

all:
	@for f in ${PROGRAMS}; do echo "$$f"; ${GOBUILD} -o ${BIN}/ ./$$f || exit 1; done

# Real mail through a real smtpd. As root on Debian; installs smtpd if need be.
demo: all
	@CGO_ENABLED=0 ${GO} run -trimpath ./test/demo

# Everything but the race detector. As root it installs the servers it needs;
# otherwise the tests that need them say so and are skipped.
test: all
	@if [ `id -u` = 0 ]; then test/install.sh; fi
	${GO} test -timeout 30m `${GO} list ./... | grep -v /test$$`
	${GO} test -count=1 -timeout 60m ./test

# All filters in a chain under everything that clients, DNS and disk do, for SOAK.
# As root, after test/install.sh.
soak: all
	@CGO_ENABLED=0 ${GO} run -trimpath ./test/soak -for ${SOAK}

# With up to RECORDS records in the store of filter-greylist. As root, after
# test/install.sh, it fails if the filters cost smtpd too much.
bench: all
	@if [ `id -u` = 0 ]; then test/install.sh bench || :; fi
	@${GOBUILD} -o bin/ ./bench/passthrough
	@${GO} run ./bench -records ${RECORDS}
	@${GO} test -run '^$$' -bench . -benchmem ./pkg/...
	@if [ `id -u` = 0 ]; then CGO_ENABLED=0 ${GO} run ./bench/smtpd; fi

# Every fuzz target for FUZZTIME. On a busy machine go test may report the end of
# that time as a failure; this is not one.
fuzz:
	@mkdir -p bin; for p in `${GO} list ./...`; do \
		for f in `${GO} test -list '^Fuzz' $$p | grep '^Fuzz'`; do \
			echo "$$p $$f"; \
			${GO} test -run '^$$' -fuzz "^$$f\$$" -fuzztime ${FUZZTIME} -fuzzminimizetime 0 $$p >bin/fuzz.log 2>&1 || \
				{ grep -q '^    context deadline exceeded$$' bin/fuzz.log && ! grep -q 'Failing input' bin/fuzz.log; } || { cat bin/fuzz.log; exit 1; }; \
		done; \
	done

lint: man
	@files=`gofmt -l .`; [ -z "$$files" ] || { echo "gofmt: $$files"; exit 1; }
	${GO} vet ./...
	${STATICCHECK} ./...

# The manual pages, checked. Which others are installed here does not matter.
man:
	@out=`mandoc -T lint filter*/*.8 man/*.7 2>&1 | grep -v -e 'referenced manual not found' -e 'outdated mandoc.db'`; \
		[ -z "$$out" ] || { echo "$$out"; exit 1; }

# Every system, of our own packages those that the filters are made of.
cross:
	@for os in openbsd freebsd linux; do for arch in amd64 arm64; do \
		echo "$$os/$$arch"; \
		for f in ${PROGRAMS}; do \
			GOOS=$$os GOARCH=$$arch CGO_ENABLED=0 ${GO} build -o /dev/null ./$$f || exit 1; \
		done; \
		GOOS=$$os GOARCH=$$arch CGO_ENABLED=0 ${GO} vet `${GO} list -deps ./filter* | grep ^opensmtpd-filters` || exit 1; \
	done; done

# Only copies what make has built, which an ordinary user can do. Files that
# belong to a package of the system stay what they are, unless FORCE=yes.
FILES =		${FILTERS:%=${LIBEXECDIR}/%} ${SBINDIR}/filterctl ${PROGRAMS:%=${MANDIR}/man8/%.8} \
		${MANDIR}/man7/opensmtpd-filters.7 ${MANDIR}/man7/opensmtpd-filters-metrics.7
FORCE =

install:
	@for f in ${PROGRAMS}; do [ -f ${BIN}/$$f ] || { echo "${BIN}/$$f is missing: run make first" >&2; exit 1; }; done
	@[ -n "${DESTDIR}${FORCE}" ] || packaging/unowned ${FILES} || \
		{ echo "nothing was installed: remove the package, or make install FORCE=yes" >&2; exit 1; }
	install -d ${DESTDIR}${LIBEXECDIR} ${DESTDIR}${SBINDIR} ${DESTDIR}${MANDIR}/man7 ${DESTDIR}${MANDIR}/man8
	for f in ${FILTERS}; do install -m 755 ${BIN}/$$f ${DESTDIR}${LIBEXECDIR}/$$f || exit 1; done
	install -m 755 ${BIN}/filterctl ${DESTDIR}${SBINDIR}/filterctl
	for f in ${PROGRAMS}; do install -m 644 $$f/$$f.8 ${DESTDIR}${MANDIR}/man8/$$f.8 || exit 1; done
	for f in opensmtpd-filters opensmtpd-filters-metrics; do install -m 644 man/$$f.7 ${DESTDIR}${MANDIR}/man7/$$f.7 || exit 1; done
	-for f in filter-greylist filter-senderscore; do \
		install -d -m 750 -o ${FILTERUSER} ${DESTDIR}${STATEDIR}/$$f || exit 1; \
	done

uninstall:
	@for f in ${FILES}; do \
		if [ -n "${DESTDIR}${FORCE}" ] || packaging/unowned $$f; then rm -f ${DESTDIR}$$f; fi; \
	done

clean:
	rm -rf bin

.PHONY: all demo test soak bench fuzz lint man cross install uninstall clean
