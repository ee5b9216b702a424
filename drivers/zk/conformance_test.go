package zk

import (
	"fmt"
	"testing"
	"time"

	"gatepost"
	"gatepost/drivers/drivertest"
	"gatepost/drivers/zk/zksim"
)

// TestConformance judges the driver against the simulator, by firmware.
func TestConformance(t *testing.T) {
	for _, o := range []zksim.Options{
		{},
		{RecordSize: 49, FrameMax: 1008, Inline: -1, NoTail: true},
		{RecordSize: 16, UserSize: 28, Bulk: "stream"},
		{Bulk: "direct", EventSize: 10, OneClient: "kick", VerifyFirst: true, OddIDs: true},
	} {
		t.Run(fmt.Sprintf("%s%d%s%v", o.Bulk, o.RecordSize, o.OneClient, o.NoTail), func(t *testing.T) {
			t.Parallel()
			drivertest.Run(t, func(t *testing.T) drivertest.Rig { return newRig(t, o) })
		})
	}
}

func newRig(t *testing.T, o zksim.Options) drivertest.Rig {
	const timeout = 200 * time.Millisecond
	o.Users, o.Records = 9, 100
	term := simulate(t, o)
	d := newTestDevice(t, term.addr, func(o *options) { o.Timeout = timeout })
	users := term.Users()
	next, start := 0, time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)
	return drivertest.Rig{
		Device:   d,
		Patience: (keepAlive + 3) * timeout,
		Punch: func(n int) {
			for range n {
				at := gatepost.WallOf(start.Add(time.Duration(next) * time.Second))
				if err := term.Punch(zksim.Punch{User: users[next%len(users)].User, Time: at}); err != nil {
					t.Error(err)
				}
				next++
			}
		},
		Held:        func() int { return term.State().Records },
		Unconfirmed: func() int { return term.State().Unacked },
		Opened:      func() int { return len(term.State().Doors) },
		Cut:         func() { term.fault(t, zksim.Fault{Kind: "drop"}) },
		Stall:       func() { term.fault(t, zksim.Fault{Kind: "silent"}) },
		Garbage:     func() { term.fault(t, zksim.Fault{Kind: "garble", Count: 1000}) },
		Heal:        func() { term.fault(t, zksim.Fault{Kind: "none"}) },
	}
}
