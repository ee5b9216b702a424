package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"gatepost"
	"gatepost/agent/config"
)

func TestWrongKeyIsNotHammered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev := &fakeDevice{open: func(int) (gatepost.Session, error) {
			return nil, &gatepost.Fault{Class: gatepost.Misconfigured, Err: errors.New("wrong comm key"), Hint: "Menu > Comm."}
		}}
		s := newSite(t, t.TempDir(), dev, nil)
		time.Sleep(time.Hour + time.Second) // virtual
		if n := dev.count(); n < 5 || n > 8 {
			t.Errorf("opened %d times in an hour, want about once in ten minutes", n)
		}
		if got := s.state("gate"); got != gatepost.StateMisconfigured {
			t.Errorf("state is %s", got)
		}
		if n := len(s.up.received(gatepost.KindStatus)); n != 2 { // connecting, misconfigured
			t.Errorf("%d states published, want 2: each change once", n)
		}
		s.halt(t)
	})
}

func TestDeadTerminalIsTriedWithinAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev := &fakeDevice{open: func(int) (gatepost.Session, error) { return nil, errors.New("no route to host") }}
		s := newSite(t, t.TempDir(), dev, nil)
		time.Sleep(time.Hour) // virtual
		if n := dev.count(); n < 60 || n > 240 {
			t.Errorf("tried %d times in an hour, want 60 to 240", n)
		}
		s.halt(t)
	})
}

func TestCatchUpThenLiveThenReconcile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newFakeSession()
		fs.log = []gatepost.Record{punch("1", "2026-01-01T08:00:00"), punch("2", "2026-01-01T08:00:01")}
		s := newSite(t, t.TempDir(), &fakeDevice{open: func(int) (gatepost.Session, error) { return fs, nil }}, nil)
		time.Sleep(time.Second)
		if n := len(s.up.received(gatepost.KindPunch)); n != 2 {
			t.Fatalf("%d punches arrived after catching up, want 2", n)
		}
		fs.live <- punch("3", "2026-01-01T08:00:02")
		fs.mu.Lock()
		// The terminal's log has the live punch too, and one that was never told live.
		fs.log = append(fs.log, punch("3", "2026-01-01T08:00:02"), punch("4", "2026-01-01T08:00:03"))
		fs.mu.Unlock()
		time.Sleep(2 * time.Minute)
		var users []string
		for _, r := range s.up.received(gatepost.KindPunch) {
			var p gatepost.Punch
			if err := json.Unmarshal(r.Data, &p); err != nil {
				t.Fatal(err)
			}
			users = append(users, p.User)
		}
		if len(users) != 4 || users[2] != "3" || users[3] != "4" {
			t.Errorf("punches of %v arrived, want 1 2 3 4 once each", users)
		}
		s.halt(t)
	})
}

func TestRestartDoublesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		total := 0
		for range 3 {
			fs := newFakeSession() // forgets the cursor each time: reads all again
			fs.log = []gatepost.Record{punch("1", "2026-01-01T08:00:00"), punch("2", "2026-01-01T08:00:01")}
			s := newSite(t, dir, &fakeDevice{open: func(int) (gatepost.Session, error) { return fs, nil }}, nil)
			time.Sleep(2 * time.Hour) // two full reads
			total += len(s.up.received(gatepost.KindPunch))
			s.halt(t)
		}
		if total != 2 {
			t.Errorf("%d punches arrived in three runs, want 2", total)
		}
	})
}

func TestAnotherTerminalAtTheAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newFakeSession(), newFakeSession()
		first.log = []gatepost.Record{punch("1", "2026-01-01T08:00:00")}
		second.info.Serial = "SN2"
		second.log = []gatepost.Record{punch("1", "2026-01-01T08:00:00")}
		s := newSite(t, t.TempDir(), &fakeDevice{open: func(n int) (gatepost.Session, error) {
			if n == 1 {
				return first, nil
			}
			return second, nil
		}}, nil)
		time.Sleep(time.Second)
		first.cut()
		time.Sleep(2 * time.Minute)
		ps := s.up.received(gatepost.KindPunch)
		if len(ps) != 2 || ps[0].ID == ps[1].ID {
			t.Errorf("%d punches, want one from each terminal under its own id", len(ps))
		}
		if !hasEvent(s.up, "terminal_changed") {
			t.Error("no terminal_changed event")
		}
		s.halt(t)
	})
}

func hasEvent(u *fakeUplink, name string) bool {
	for _, r := range u.received(gatepost.KindEvent) {
		var e gatepost.Event
		if json.Unmarshal(r.Data, &e) == nil && e.Name == name {
			return true
		}
	}
	return false
}

func TestTerminalThatKeepsKickingIsPolledShortly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev := &fakeDevice{}
		dev.open = func(n int) (gatepost.Session, error) {
			fs := newFakeSession()
			if n <= kicksBeforeShort {
				time.AfterFunc(2*time.Second, fs.cut)
			}
			return fs, nil
		}
		s := newSite(t, t.TempDir(), dev, nil)
		time.Sleep(5 * time.Minute)
		if !hasEvent(s.up, "short_connections") {
			t.Error("no short_connections event")
		}
		if n := dev.count(); n < 20 {
			t.Errorf("opened %d times in five minutes, want about one every ten seconds", n)
		}
		if got := s.state("gate"); got != gatepost.StateOnline {
			t.Errorf("state is %s between short connections", got)
		}
		s.halt(t)
	})
}

func TestJumpedClockIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newFakeSession()
		s := newSite(t, t.TempDir(), &fakeDevice{open: func(int) (gatepost.Session, error) { return fs, nil }}, nil)
		time.Sleep(time.Second)
		fs.mu.Lock()
		fs.skew = 42 * time.Second
		fs.mu.Unlock()
		time.Sleep(clockEvery)
		if !hasEvent(s.up, "clock_jumped") {
			t.Error("no clock_jumped event")
		}
		if len(fs.set) != 0 {
			t.Error("the clock was set without being asked for")
		}
		s.halt(t)
	})
}

func TestClockIsGovernedOnlyWithinItsRules(t *testing.T) {
	for _, c := range []struct {
		name      string
		skew      time.Duration
		threshold time.Duration
		trusted   bool
		sets      int
		event     string
	}{
		{"off by default", time.Minute, 0, true, 0, ""},
		{"past the threshold", time.Minute, 30 * time.Second, true, 1, "clock_set"},
		{"below the threshold", 20 * time.Second, 30 * time.Second, true, 0, ""},
		{"a wrong zone is no skew", time.Hour + 3*time.Second, 30 * time.Second, true, 0, "zone_suspect"},
		{"the board itself does not know", time.Minute, 30 * time.Second, false, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs := newFakeSession()
				fs.skew = c.skew
				s := newSite(t, t.TempDir(), &fakeDevice{open: func(int) (gatepost.Session, error) { return fs, nil }}, func(o *Options) {
					o.Devices[0].SyncClock = c.threshold
					o.Trusted = c.trusted
				})
				time.Sleep(time.Minute)
				fs.mu.Lock()
				sets := len(fs.set)
				fs.mu.Unlock()
				if sets != c.sets {
					t.Errorf("clock set %d times, want %d", sets, c.sets)
				}
				if c.event != "" && !hasEvent(s.up, c.event) {
					t.Errorf("no %s event", c.event)
				}
				s.halt(t)
			})
		})
	}
}

func TestOneDeadTerminalDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung := deviceFunc(func(ctx context.Context) (gatepost.Session, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})
		fs := newFakeSession()
		s := newSite(t, t.TempDir(), &fakeDevice{open: func(int) (gatepost.Session, error) { return fs, nil }}, func(o *Options) {
			o.Devices = append([]config.Device{deviceConf("dead", hung)}, o.Devices...)
		})
		time.Sleep(time.Second)
		began := time.Now()
		fs.live <- punch("1", "2026-01-01T08:00:00")
		until(t, "the punch", func() bool { return len(s.up.received(gatepost.KindPunch)) == 1 })
		if took := time.Since(began); took > 100*time.Millisecond { // virtual: nothing may wait for the dead one
			t.Errorf("took %s", took)
		}
		s.halt(t)
	})
}

type deviceFunc func(context.Context) (gatepost.Session, error)

func (f deviceFunc) Open(ctx context.Context) (gatepost.Session, error) { return f(ctx) }

func TestReloadTouchesOnlyWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		open := func(serial string) *fakeDevice {
			return &fakeDevice{open: func(int) (gatepost.Session, error) {
				fs := newFakeSession()
				fs.info.Serial = serial
				return fs, nil
			}}
		}
		gate, side, yard := open("A"), open("B"), open("C")
		s := newSite(t, t.TempDir(), gate, func(o *Options) {
			o.Devices = append(o.Devices, deviceConf("side", side))
		})
		time.Sleep(time.Second)
		changed := deviceConf("side", side)
		changed.Hash = "2"
		if err := s.Reload(t.Context(), []config.Device{deviceConf("gate", gate), changed, deviceConf("yard", yard)}, s.opts.Uplinks); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if gate.count() != 1 || side.count() != 2 || yard.count() != 1 {
			t.Errorf("opened gate %d, side %d, yard %d times; want 1, 2, 1", gate.count(), side.count(), yard.count())
		}
		if err := s.Reload(t.Context(), []config.Device{deviceConf("gate", gate)}, s.opts.Uplinks); err != nil {
			t.Fatal(err)
		}
		if s.device("yard") != nil || gate.count() != 1 || len(s.up.links) != 1 {
			t.Error("removing two devices touched something else")
		}
		s.halt(t)
	})
}

func TestStopsWithinFiveSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newFakeSession()
		fs.readGate = make(chan struct{}) // a read that never ends
		s := newSite(t, t.TempDir(), &fakeDevice{open: func(int) (gatepost.Session, error) { return fs, nil }}, func(o *Options) {
			o.Uplinks[0].Uplink.(*fakeUplink).send = func([]gatepost.Stored, bool) (int, error) { return 0, io.ErrNoProgress }
		})
		time.Sleep(time.Minute)
		began := time.Now()
		s.halt(t)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("took %s to stop", took)
		}
	})
}
