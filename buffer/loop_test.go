package buffer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is a private ext4 file system on a loop device with its own counters. It needs root, mkfs.ext4 and losetup.
type disk struct {
	t      testing.TB
	device string // "/dev/loop7"
	dir    string
}

func newDisk(t testing.TB, mib int) *disk {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(mib) << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	command(t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
	d := &disk{t: t, device: strings.TrimSpace(command(t, "losetup", "--find", "--show", image)), dir: t.TempDir()}
	t.Cleanup(func() { command(t, "losetup", "--detach", d.device) })
	d.mount()
	t.Cleanup(d.unmount)
	return d
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s (this needs root)", name, args, err, out)
	}
	return string(out)
}

func (d *disk) mount() {
	d.t.Helper()
	if err := unix.Mount(d.device, d.dir, "ext4", 0, ""); err != nil {
		d.t.Fatal("mount:", err)
	}
}

func (d *disk) unmount() {
	d.t.Helper()
	if err := unix.Unmount(d.dir, 0); err != nil {
		d.t.Fatal("unmount:", err)
	}
}

// counters are the bytes written to the device and the flushes it got: fields 7 and 16 of its stat file, see the kernel's
// Documentation/block/stat.rst; a sector there has 512 bytes.
func (d *disk) counters() (bytes, flushes int64) {
	d.t.Helper()
	b, err := os.ReadFile("/sys/block/" + filepath.Base(d.device) + "/stat")
	if err != nil {
		d.t.Fatal(err)
	}
	var v [17]int64
	for i, f := range strings.Fields(string(b)) {
		if i < len(v) {
			fmt.Sscan(f, &v[i])
		}
	}
	return v[6] * 512, v[15]
}
