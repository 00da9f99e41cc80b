#!/bin/sh
# Runs the tests of the eBPF programs on another kernel, in a virtual machine without a disk:
#   scripts/kernel-check.sh linux-image-6.1.0-50-cloud-amd64 [TEST...]
# The argument names a Debian kernel package, or the file of one. Tests: load, programs and connect
# unless named; live asks for shares of fast packets that an emulated machine is too slow for.
# Needs qemu-system-x86, busybox-static, kmod, cpio and what the tests need.
set -eu
cd "$(dirname -- "$0")/.."
package=${1:?usage: kernel-check.sh KERNEL_PACKAGE [TEST...]}
shift
[ $# -gt 0 ] || set -- load programs connect
# Emulation works everywhere. KERNEL_CHECK_ACCELERATOR=kvm is faster where there is a real one.
accelerator=${KERNEL_CHECK_ACCELERATOR:-tcg}
patience=${KERNEL_CHECK_SECONDS:-900}
modules='veth bridge br_netfilter nf_conntrack nf_conntrack_ftp nf_conntrack_netlink nf_nat nf_tables nft_socket
	nft_chain_nat nft_ct nft_masq nft_nat nft_fib_inet sch_ingress cls_bpf sctp inet_diag tcp_diag udp_diag'
# busybox's own sh would take its applets for these.
tools='dash ip tc nft iperf3 ethtool nstat nsenter modprobe conntrack'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root/bin" "$root/tests" "$root/tmp" "$work/kernel"

if [ -f "$package" ]; then
	dpkg-deb -x "$package" "$work/kernel"
else
	(cd "$work" && apt-get -qq download "$package" && dpkg-deb -x ./*.deb kernel)
fi
release=$(basename "$work"/kernel/boot/vmlinuz-*)
release=${release#vmlinuz-}
mkdir -p "$root/usr" && ln -s ../lib "$root/usr/lib"
mkdir -p "$root/lib/modules"
cp -r "$work"/kernel/*/modules/"$release" "$root/lib/modules/" 2>/dev/null ||
	cp -r "$work"/kernel/usr/lib/modules/"$release" "$root/lib/modules/"
find "$root/lib/modules/$release/kernel/drivers" -mindepth 1 -maxdepth 1 ! -name net \
	-exec rm -rf {} +
depmod -b "$root" "$release"

# Copies a program with its libraries, to the places where it looks for them.
place() {
	cp -L "$1" "$2"
	for library in $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*'); do
		mkdir -p "$root$(dirname "$library")"
		cp -L "$library" "$root$library"
	done
}
for tool in $tools; do
	path=$(PATH=$PATH:/usr/sbin:/sbin command -v "$tool") || continue
	place "$path" "$root/bin/$tool"
done
ln -s dash "$root/bin/sh"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $("$root/bin/busybox" --list); do
	[ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
done
for test in "$@"; do
	cargo test --quiet -p natbridge-datapath --test "$test" --no-run
	binary=$(cargo test -p natbridge-datapath --test "$test" --no-run 2>&1 |
		sed -n 's/.*Executable.*(\(.*\))$/\1/p')
	place "$binary" "$root/tests/$test"
done

cat >"$root/init" <<END
#!/bin/sh
export PATH=/bin
mkdir -p /proc /sys /dev /run /etc /var/run
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /run/netns
ip link set lo up
for module in $(echo $modules); do modprobe -q \$module; done
failed=0
for test in $*; do
	echo "kernel-check: \$test on \$(uname -r)"
	/tests/\$test --test-threads 1 || failed=1
done
[ \$failed = 0 ] && echo "kernel-check: all passed"
poweroff -f
END
chmod +x "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initramfs"

timeout "$patience" qemu-system-x86_64 -accel "$accelerator" -cpu max -smp 2 -m 2048 -no-reboot \
	-nographic -kernel "$work/kernel/boot/vmlinuz-$release" -initrd "$work/initramfs" \
	-append 'console=ttyS0 quiet panic=-1' </dev/null | tr -d '\r' | tee "$work/log"
grep -q '^kernel-check: all passed' "$work/log"
