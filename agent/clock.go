package agent

import (
	"os"
	"strings"
	"time"

	"gatepost"

	"golang.org/x/sys/unix"
)

// boardClock says how far the board's clock can be trusted.
type boardClock struct {
	trusted bool // agent.clock: trusted
	boot    string
	now     func() time.Time
	synced  func() bool
}

func newBoardClock(trusted bool, now func() time.Time) *boardClock {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return &boardClock{trusted: trusted, boot: strings.TrimSpace(string(boot)), now: now, synced: kernelSynced}
}

// word is the clock word for records made now.
func (c *boardClock) word() string {
	switch {
	case c.trusted:
		return gatepost.ClockTrusted
	case c.synced():
		return gatepost.ClockSynced
	}
	return gatepost.ClockUnsynced
}

// kernelSynced asks the kernel whether some time service disciplines its clock (adjtimex(2): STA_UNSYNC, TIME_ERROR).
func kernelSynced() bool {
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	return err == nil && state != unix.TIME_ERROR && tx.Status&unix.STA_UNSYNC == 0
}

// sinceBoot is CLOCK_BOOTTIME: it never jumps and goes on in suspend.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
