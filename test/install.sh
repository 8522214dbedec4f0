#!/bin/sh
# Installs what the tests under test/ run against. As root, on Debian 12:
#
#	test/install.sh         everything
#	test/install.sh demo    only what make demo needs
#	test/install.sh bench   only what make bench measures against
#
# What is there already is left alone, so it may run before every test.
set -eu

# opensmtpd    smtpd 6.8.0p2, protocol 0.6
# iproute2     ip(8), to make every source address local in the tests' own network
# debootstrap  fetches roots of later Debians: 13 (trixie) for smtpd 7.6, protocol 0.7,
#              TLS and AUTH; 14 (forky) for smtpd 7.9
# mandoc       checks the manual pages, groff-base shows them as Debian does
# rbldnsd      serves DNS lists, as those who run them do
# nsd          serves one with a wildcard, unbound and dnsmasq stand between
# msmtp        a client that does not try again by itself
# lib...       for postfix, a client that does; see below
# prometheus   with promtool and node_exporter, which read metrics; see below
# fail2ban     reads the log
# redis-server holds one greylist for several hosts; so does valkey-server, of Debian 13
# chromium...  opens the page of filterctl report; it has no window
# postgrey     the greylisting of Postfix
# pflogsumm    reports what Postfix has logged
# faketime     gives it the clock of the simulation
# gcc          for a filter in C, the peer of ours; and see below
what=${1-all}
case $what in
all) packages="opensmtpd iproute2 debootstrap mandoc groff-base rbldnsd nsd unbound dnsmasq-base msmtp redis-server fail2ban libdb5.3 libicu72 libnsl2 libsasl2-2 libssl3 chromium-headless-shell" ;;
demo) packages="opensmtpd iproute2" ;;
bench) packages="faketime postgrey pflogsumm opensmtpd iproute2 gcc libc6-dev redis-server" ;;
*)
	echo "usage: install.sh [demo|bench]" >&2
	exit 1
	;;
esac

# One of each for all clones on the machine. Remove one to have it made again.
cache=/var/cache/opensmtpd-filters
suites="trixie forky"
postfix=$cache/postfix
prometheus=$cache/prometheus
senderscore=$cache/senderscore
valkey=usr/bin/valkey-server # in the root of Debian 13

# What an earlier install.sh has left may lack a program.
[ $what != all ] || [ ! -d $prometheus ] || [ -x $prometheus/prometheus ] || [ "$(id -u)" != 0 ] || rm -rf $prometheus

die() {
	echo "install.sh: $*" >&2
	exit 1
}

failed() {
	tail -n 20 "$log" >&2
	die "failed: $*"
}

run() { # a command whose output matters only when it fails
	"$@" >"$log" 2>&1 </dev/null || failed "$@"
}

missing() {
	for p in $packages; do
		dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || echo "$p"
	done
}

command -v apt-get >/dev/null && [ -r /etc/debian_version ] ||
	die "not a Debian system; this wants Debian 12 with: $packages"

need=$(missing | tr '\n' ' ')
[ $what != all ] || for d in postfix prometheus $suites; do
	[ -d $cache/$d ] || need="$need$cache/$d "
done
[ $what != bench ] || [ -d $senderscore ] || need="$need$senderscore "
[ $what != all ] || [ -e $cache/trixie/$valkey ] || need="$need$cache/trixie/$valkey "
[ -n "$need" ] || exit 0
[ "$(id -u)" = 0 ] || die "not root; missing: $need"

mkdir -p $cache
exec 9>$cache/lock
flock 9 # two clones may ask at once
log=$(mktemp)
policy=/usr/sbin/policy-rc.d
restore() {
	rm -f "$log"
	[ ! -e $policy.before ] || mv $policy.before $policy
}
trap restore EXIT
trap 'exit 1' HUP INT TERM

export DEBIAN_FRONTEND=noninteractive
run apt-get update
need=$(missing)
if [ -n "$need" ]; then
	# Else the package starts a mail server on port 25.
	[ ! -e $policy ] || mv $policy $policy.before
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
	# Another mail server of this machine is not ours to remove.
	status=0
	apt-get install -y --no-install-recommends --no-remove $need >"$log" 2>&1 </dev/null || status=$?
	rm $policy
	[ $status = 0 ] || failed apt-get install $need
fi

# The filter whose flags ours has. It would take the place of ours.
if [ $what = bench ] && [ ! -d $senderscore ]; then
	rm -rf $senderscore.part
	mkdir $senderscore.part
	run sh -c "cd $senderscore.part && apt-get download opensmtpd-filter-senderscore && dpkg -x *.deb . && rm *.deb"
	mv $senderscore.part $senderscore
fi

[ $what = all ] || exit 0

# Postfix conflicts with opensmtpd, so it is only unpacked.
if [ ! -d $postfix ]; then
	rm -rf $postfix.part
	mkdir $postfix.part
	run sh -c "cd $postfix.part && apt-get download postfix && dpkg -x postfix_*.deb . && rm postfix_*.deb"
	chmod -R ug-s $postfix.part # else they do not look at LD_LIBRARY_PATH
	mv $postfix.part $postfix
fi
# Of these only the programs are wanted, and no service.
if [ ! -d $prometheus ]; then
	rm -rf $prometheus.part
	mkdir $prometheus.part
	run sh -c "cd $prometheus.part && apt-get download prometheus prometheus-node-exporter &&
		dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components 3 ./usr/bin/promtool ./usr/bin/prometheus &&
		dpkg-deb --fsys-tarfile prometheus-node-exporter_*.deb | tar -x --strip-components 3 ./usr/bin/prometheus-node-exporter &&
		rm *.deb"
	mv $prometheus.part $prometheus
fi

# The mirror and the proxy that apt uses.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' |
	grep -m 1 '^https\?://') || mirror=http://deb.debian.org/debian
eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"
export http_proxy="${http_proxy-}" https_proxy="${https_proxy-}"

# Each is made beside its place and moved there when complete. The mounts of an
# interrupted debootstrap end with its name space. smtpd 7 does not start with
# TLS unless there are ca-certificates. debootstrap of Debian 12 does not know
# the name forky; the script is the same for all.
for suite in $suites; do
	root=$cache/$suite
	[ ! -d $root ] || continue
	rm -rf --one-file-system $root.part
	run unshare --mount debootstrap --force-check-gpg --variant=minbase \
		--include=opensmtpd,ca-certificates $suite $root.part "$mirror" sid
	for f in hosts resolv.conf; do # places to mount the tests' own
		rm -f $root.part/etc/$f
		: >$root.part/etc/$f
	done
	rm -rf $root.part/var/cache/apt/archives/*.deb $root.part/var/lib/apt/lists/*
	mv $root.part $root
done

# It is not started: nothing of a root is. The root has no names of its own.
root=$cache/trixie
if [ ! -e $root/$valkey ]; then
	printf '#!/bin/sh\nexit 101\n' >$root/usr/sbin/policy-rc.d
	chmod 755 $root/usr/sbin/policy-rc.d
	run unshare --mount sh -ec "mount --bind /etc/resolv.conf $root/etc/resolv.conf
		mount --bind /etc/hosts $root/etc/hosts
		chroot $root apt-get update
		chroot $root apt-get install -y --no-install-recommends valkey-server
		chroot $root apt-get clean"
	rm -rf $root/var/lib/apt/lists/* $root/usr/sbin/policy-rc.d
fi
