package agent

import (
	"os"
	"strings"
	"sync/atomic"
	"time"

	"gatepost"

	"golang.org/x/sys/unix"
)

// boardClock says how far the board's clock can be trusted.
type boardClock struct {
	trusted bool // agent.clock: trusted
	boot    string
	wall    func() time.Time
	synced  func() bool
	floor   atomic.Pointer[floor]
}

// floor is a time that is surely past: a board without a battery wakes in another year.
type floor struct {
	time time.Time
	boot time.Duration // sinceBoot when it was set
}

func newBoardClock(trusted bool, wall func() time.Time) *boardClock {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return &boardClock{trusted: trusted, boot: strings.TrimSpace(string(boot)), wall: wall, synced: kernelSynced}
}

// now is the board's time, but never below the floor, from which it goes on by the time since then.
func (c *boardClock) now() time.Time {
	t := c.wall()
	if f := c.floor.Load(); f != nil && t.Before(f.time) {
		return f.time.Add(sinceBoot() - f.boot)
	}
	return t
}

// notBelow sets the floor.
func (c *boardClock) notBelow(t time.Time) { c.floor.Store(&floor{t, sinceBoot()}) }

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
