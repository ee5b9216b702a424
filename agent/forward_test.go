package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"gatepost"
)

// putPunches stores n punches as a terminal would.
func (s *site) putPunches(t *testing.T, from, n int) {
	t.Helper()
	until(t, "the device", func() bool { return s.device("gate") != nil })
	rs := make([]gatepost.Record, n)
	for i := range rs {
		wall := gatepost.WallOf(time.Date(2026, 1, 1, 0, 0, from+i, 0, time.UTC))
		rs[i] = punch(fmt.Sprint(from+i), string(wall))
	}
	if err := s.device("gate").store(t.Context(), rs...); err != nil {
		t.Fatal(err)
	}
}

func TestLivePassesABacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newFakeSession()
		s := newSite(t, t.TempDir(), &fakeDevice{open: func(int) (gatepost.Session, error) { return fs, nil }}, func(o *Options) {
			up := o.Uplinks[0].Uplink.(*fakeUplink)
			up.dial = func(n int) error {
				if n == 1 {
					return errors.New("away")
				}
				return nil
			}
			up.send = func(rs []gatepost.Stored, replay bool) (int, error) {
				if replay {
					time.Sleep(time.Duration(len(rs)) * 10 * time.Millisecond) // a slow link: 100 records/s
				}
				return len(rs), nil
			}
		})
		s.putPunches(t, 0, 20000)
		time.Sleep(5 * time.Second)
		began := time.Now()
		fs.live <- punch("live", "2026-02-01T08:00:00")
		until(t, "the live punch", func() bool {
			for _, r := range s.up.received(gatepost.KindPunch) {
				if !r.replay {
					return true
				}
			}
			return false
		})
		if took := time.Since(began); took > time.Second {
			t.Errorf("the live punch took %s", took)
		}
		time.Sleep(5 * time.Minute)
		seen := map[gatepost.ID]int{}
		last := int64(0)
		for _, r := range s.up.received(gatepost.KindPunch) {
			seen[r.ID]++
			if r.replay && r.Seq < last {
				t.Fatalf("backlog out of order: %d after %d", r.Seq, last)
			}
			if r.replay {
				last = r.Seq
			}
		}
		if len(seen) != 20001 {
			t.Errorf("%d punches arrived, want 20001", len(seen))
		}
		for id, n := range seen {
			if n != 1 {
				t.Errorf("%s arrived %d times", id, n)
			}
		}
		if p := s.store.Place("cloud"); p.Done != p.Live || p.Done != s.store.Head() {
			t.Errorf("lanes did not meet: %+v, head %d", p, s.store.Head())
		}
		s.halt(t)
	})
}

func TestUnconfirmedIsSentAgainAndConfirmedIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newFakeSession()
		s := newSite(t, t.TempDir(), &fakeDevice{open: func(int) (gatepost.Session, error) { return fs, nil }}, nil)
		time.Sleep(time.Second)
		calls := 0
		s.up.mu.Lock()
		s.up.send = func(rs []gatepost.Stored, _ bool) (int, error) {
			if calls++; calls%3 == 0 {
				s.up.link().Close(t.Context())
				return len(rs) / 2, errors.New("cut in the middle")
			}
			return len(rs), nil
		}
		s.up.mu.Unlock()
		for i := range 20 {
			s.putPunches(t, 100*i, 10)
			time.Sleep(40 * time.Second)
		}
		seen := map[gatepost.ID]int{}
		for _, r := range s.up.received(gatepost.KindPunch) {
			seen[r.ID]++
		}
		if len(seen) != 200 {
			t.Errorf("%d of 200 arrived", len(seen))
		}
		for id, n := range seen {
			if n != 1 {
				t.Errorf("%s was confirmed %d times", id, n)
			}
		}
		s.halt(t)
	})
}

func TestRecordThatCanNeverPassIsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := gateSite(t, nil)
		s.up.mu.Lock()
		s.up.send = func(rs []gatepost.Stored, _ bool) (int, error) {
			for i, r := range rs {
				if r.TimeRaw == "2026-01-01T00:00:05" {
					return i, &gatepost.Fault{Class: gatepost.Permanent, Err: errors.New("too large")}
				}
			}
			return len(rs), nil
		}
		s.up.mu.Unlock()
		s.putPunches(t, 0, 10)
		time.Sleep(time.Second)
		if n := len(s.up.received(gatepost.KindPunch)); n != 9 {
			t.Errorf("%d arrived, want 9", n)
		}
		ps, err := s.store.Parked(t.Context(), 10)
		if err != nil || len(ps) != 1 || ps[0].Reason != "too large" {
			t.Errorf("parked %+v, %v", ps, err)
		}
		s.halt(t)
	})
}

// TestFleetDoesNotReturnAtOnce: the first wait after a lost link is spread over the whole window.
func TestFleetDoesNotReturnAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var waits []time.Duration
		for range 20 {
			s, _ := gateSite(t, nil)
			s.up.link().Close(t.Context())
			lost := time.Now()
			until(t, "the link", func() bool { s.up.mu.Lock(); defer s.up.mu.Unlock(); return s.up.dials == 1 })
			for {
				time.Sleep(100 * time.Millisecond)
				s.up.mu.Lock()
				back := s.up.dials == 2
				s.up.mu.Unlock()
				if back {
					break
				}
			}
			waits = append(waits, time.Since(lost))
			s.halt(t)
		}
		var early, late int
		for _, w := range waits {
			if w > 15*time.Second+time.Second {
				t.Errorf("waited %s", w)
			}
			if w < 5*time.Second {
				early++
			}
			if w > 8*time.Second {
				late++
			}
		}
		if early == len(waits) || late == 0 {
			t.Errorf("not spread over the window: %v", waits)
		}
	})
}

func TestRefusedLoginIsNotHammered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, t.TempDir(), &fakeDevice{open: func(int) (gatepost.Session, error) { return newFakeSession(), nil }}, func(o *Options) {
			o.Uplinks[0].Uplink.(*fakeUplink).dial = func(int) error {
				return &gatepost.Fault{Class: gatepost.Misconfigured, Err: errors.New("login refused"), Hint: "username and password_file"}
			}
		})
		time.Sleep(time.Hour)
		s.up.mu.Lock()
		n := s.up.dials
		s.up.mu.Unlock()
		if n > 8 {
			t.Errorf("dialled %d times in an hour", n)
		}
		if r := s.Report().Uplinks[0]; r.State != "misconfigured" || r.Hint != "username and password_file" {
			t.Errorf("%+v", r)
		}
		s.halt(t)
	})
}

func TestSecondAgentOnTheDirectory(t *testing.T) {
	dir := t.TempDir()
	release, err := LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockDir(dir); err == nil || gatepost.ClassOf(err) != gatepost.Misconfigured {
		t.Errorf("second lock: %v", err)
	} else if want := fmt.Sprintf("another gatepost (process %d) already works in %s", os.Getpid(), dir); err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if _, err := LockDir(dir); err != nil {
		t.Errorf("after release: %v", err)
	}
	if _, err := LockDir(filepath.Join(dir, "missing")); gatepost.HintOf(err) == "" {
		t.Errorf("missing directory: %v has no hint", err)
	}
}
