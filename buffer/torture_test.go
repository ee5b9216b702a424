//go:build torture

package buffer

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestPowerCut cuts the power 40 times while punches are put: the file system is shut down without flushing its journal,
// so that only what was synced is left. Nothing acknowledged may be lost. Needs root.
func TestPowerCut(t *testing.T) {
	d := newDisk(t, 96)
	path := filepath.Join(d.dir, "records.db")
	acked := make(map[[2]int]bool)
	for round := range 40 {
		cmd, out := child(t, "put", path)
		lines := bufio.NewScanner(out)
		for mine := 0; mine < 20+37*round; mine++ {
			var w, n int
			lines.Scan()
			if _, err := fmt.Sscanf(lines.Text(), "acked %d %d", &w, &n); err != nil {
				t.Fatalf("round %d: after %d the child said %q", round, mine, lines.Text())
			}
			acked[[2]int{w, n}] = true
		}
		// What the child says from here on does not count, as a board without power says nothing: an fdatasync of a growing
		// file that is under way at this moment returns nil though its size is lost (Linux 6.18, also for a bare file).
		cutPower(t, d.dir)
		for lines.Scan() {
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		d.unmount()
		d.mount()
		checkAcked(t, path, acked)
	}
	t.Logf("%d acknowledged, all there", len(acked))
}

// cutPower is the ioctl EXT4_IOC_SHUTDOWN with the flag "no log flush".
func cutPower(t testing.TB, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const shutdown, noLogFlush = 0x8004587d, 2
	flag := uint32(noLogFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flag))); errno != 0 {
		t.Fatal("shut down the file system:", errno)
	}
}
