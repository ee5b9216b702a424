package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatepost"
	"gatepost/agent/book"
)

// results is what the far side got about one command id, in order.
func (u *fakeUplink) results(id string) []gatepost.Result {
	var out []gatepost.Result
	for _, s := range u.received(gatepost.KindResult) {
		var r gatepost.Result
		if json.Unmarshal(s.Data, &r) == nil && r.ID == id {
			out = append(out, r)
		}
	}
	return out
}

func (u *fakeUplink) command(c gatepost.Command) { u.deliver(gatepost.Delivery{Command: c}) }

func (u *fakeUplink) deliver(m gatepost.Delivery) {
	u.mu.Lock()
	take := u.take
	u.mu.Unlock()
	take(m)
}

// gateSite is a site in the bubble whose one terminal is online.
func gateSite(t *testing.T, change func(*Options)) (*site, *fakeSession) {
	fs := newFakeSession()
	s := newSite(t, t.TempDir(), &fakeDevice{open: func(int) (gatepost.Session, error) { return fs, nil }}, change)
	time.Sleep(time.Second)
	return s, fs
}

// TestRefusedCommands holds every reason for refusing, with the words that the sender reads. None opens a door.
func TestRefusedCommands(t *testing.T) {
	unlock := func(change func(*gatepost.Command)) func(time.Time) gatepost.Delivery {
		return func(now time.Time) gatepost.Delivery {
			c := gatepost.Command{ID: "c1", Device: "gate", Verb: "unlock", Issued: now}
			change(&c)
			return gatepost.Delivery{Command: c}
		}
	}
	args := func(s string) func(time.Time) gatepost.Delivery {
		return unlock(func(c *gatepost.Command) { c.Args = json.RawMessage(s) })
	}
	for _, c := range []struct {
		name     string
		delivery func(now time.Time) gatepost.Delivery
		want     string
	}{
		{"not JSON", func(time.Time) gatepost.Delivery { return gatepost.Delivery{Bad: errors.New("not JSON: at byte 1")} },
			"rejected bad_json: not JSON: at byte 1"},
		{"no id", unlock(func(c *gatepost.Command) { c.ID = "" }),
			`rejected no_id: a command needs an "id" of its own`},
		{"unknown verb", unlock(func(c *gatepost.Command) { c.Verb = "explode" }),
			`rejected unknown_command: there is no command "explode"; known are unlock, info, get_time, sync_time, pull, users_list, devices, ping`},
		{"unknown device", unlock(func(c *gatepost.Command) { c.Device = "moon" }),
			`rejected unknown_device: there is no device "moon" here`},
		{"no device", unlock(func(c *gatepost.Command) { c.Device = "" }),
			`rejected unknown_device: "unlock" needs a device`},
		{"agent verb to a device", unlock(func(c *gatepost.Command) { c.Verb = "ping" }),
			`rejected unknown_command: "ping" is a command for the agent, not for a device`},
		{"retained", unlock(func(c *gatepost.Command) { c.Retained = true }),
			"rejected retained: the broker had kept this command (retained); it is never run"},
		{"without freshness", unlock(func(c *gatepost.Command) { c.Issued = time.Time{} }),
			`rejected no_freshness: a command that moves a door or tells the time needs "issued_at" or "challenge"`},
		{"stale", unlock(func(c *gatepost.Command) { c.Issued = c.Issued.Add(-11 * time.Second) }),
			"expired stale: issued 11s ago; it was good for 10s"},
		{"stale with its own ttl", unlock(func(c *gatepost.Command) { c.Issued = c.Issued.Add(-3 * time.Second); c.TTL = 2 * time.Second }),
			"expired stale: issued 3s ago; it was good for 2s"},
		{"a ttl of days does not keep a door command alive", unlock(func(c *gatepost.Command) { c.Issued = c.Issued.Add(-2 * time.Minute); c.TTL = 100 * time.Hour }),
			"expired stale: issued 2m0s ago; it was good for 1m0s"},
		{"from the future", unlock(func(c *gatepost.Command) { c.Issued = c.Issued.Add(time.Minute) }),
			"rejected stale: issued 1m0s in the future: compare the clocks of sender and board"},
		{"wrong challenge", unlock(func(c *gatepost.Command) { c.Issued = time.Time{}; c.Challenge = "guess" }),
			"rejected wrong_challenge: this challenge was not published within the last minute; take the newest from state or heartbeat"},
		{"door that is not there", args(`{"door":2}`), "rejected bad_args: args: door must be 1 to 1, not 2"},
		{"door of another type", args(`{"door":"front"}`), "rejected bad_args: args: door must not be a string"},
		{"negative seconds", args(`{"seconds":-1}`), "rejected bad_args: args: seconds must be above 0 and at most 600, not -1"},
		{"a day", args(`{"seconds":86400}`), "rejected bad_args: args: seconds must be above 0 and at most 600, not 86400"},
		{"number too large", args(`{"seconds":1e999}`), "rejected bad_args: args: seconds must not be a number 1e999"},
		{"misspelt", args(`{"second":3}`), `rejected bad_args: args: unknown field "second"`},
		{"not an object", args(`[1]`), "rejected bad_args: args: must be an object, not a array"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, fs := gateSite(t, nil)
				acknowledged := false
				m := c.delivery(time.Now())
				m.Done = func() { acknowledged = true }
				s.up.deliver(m)
				time.Sleep(time.Second)
				rs := s.up.results(m.Command.ID)
				if len(rs) != 1 {
					t.Fatalf("%d results, want 1", len(rs))
				}
				if got := fmt.Sprintf("%s %s: %s", rs[0].Status, rs[0].Error.Code, rs[0].Error.Message); got != c.want {
					t.Errorf("got  %s\nwant %s", got, c.want)
				}
				if !acknowledged {
					t.Error("the broker was not told that it is done with")
				}
				if fs.opened() != 0 {
					t.Error("a door opened")
				}
				s.halt(t)
			})
		})
	}
}

func TestUnsyncedBoardNeedsTheChallenge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, fs := gateSite(t, func(o *Options) { o.Trusted = false })
		s.up.command(gatepost.Command{ID: "by-time", Device: "gate", Verb: "unlock", Issued: time.Now()})
		s.up.command(gatepost.Command{ID: "by-challenge", Device: "gate", Verb: "unlock", Challenge: s.up.hello.Challenge})
		time.Sleep(challengeLife + s.opts.Beat)
		s.up.command(gatepost.Command{ID: "too-late", Device: "gate", Verb: "unlock", Challenge: s.up.hello.Challenge})
		time.Sleep(time.Second)
		for id, want := range map[string]gatepost.ResultStatus{"by-time": gatepost.StatusRejected, "by-challenge": gatepost.StatusDone, "too-late": gatepost.StatusRejected} {
			if rs := s.up.results(id); len(rs) != 1 || rs[0].Status != want {
				t.Errorf("%s: %+v, want one %s", id, rs, want)
			}
		}
		if fs.opened() != 1 {
			t.Errorf("door opened %d times, want once", fs.opened())
		}
		s.halt(t)
	})
}

func TestRepeatedCommandIsAnsweredTwiceAndRunOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, fs := gateSite(t, nil)
		c := gatepost.Command{ID: "c1", Device: "gate", Verb: "unlock", Issued: time.Now()}
		s.up.command(c)
		s.up.command(c)
		time.Sleep(time.Minute)
		s.up.command(c) // stale by now: still the stored answer
		time.Sleep(time.Second)
		rs := s.up.results("c1")
		if len(rs) != 3 {
			t.Fatalf("%d answers, want 3", len(rs))
		}
		for _, r := range rs {
			if r.Status != gatepost.StatusDone {
				t.Errorf("answered %s, want done", r.Status)
			}
		}
		if fs.opened() != 1 {
			t.Errorf("door opened %d times", fs.opened())
		}
		s.halt(t)
	})
}

func TestSameIDAtOnceRunsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, fs := gateSite(t, nil)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				s.up.command(gatepost.Command{ID: "c1", Device: "gate", Verb: "unlock", Issued: time.Now()})
			})
		}
		wg.Wait()
		if fs.opened() != 1 {
			t.Errorf("door opened %d times", fs.opened())
		}
		s.halt(t)
	})
}

func TestSlowCommandIsAcceptedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, fs := gateSite(t, nil)
		fs.unlock = func(context.Context) error { time.Sleep(3 * time.Second); return nil }
		s.up.command(gatepost.Command{ID: "c1", Device: "gate", Verb: "unlock", Issued: time.Now()})
		time.Sleep(time.Second)
		rs := s.up.results("c1")
		if len(rs) != 2 || rs[0].Status != gatepost.StatusAccepted || rs[1].Status != gatepost.StatusDone {
			t.Errorf("got %+v, want accepted, then done", rs)
		}
		s.halt(t)
	})
}

func TestCommandOutcomes(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"no answer", fmt.Errorf("unlock: %w", gatepost.ErrOutcomeUnknown), "unknown no_answer"},
		{"refused", fmt.Errorf("unlock: %w", gatepost.ErrRefused), "failed refused"},
		{"cannot", errors.ErrUnsupported, "unsupported unsupported"},
		{"broken", errors.New("the connection is gone"), "failed failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, fs := gateSite(t, nil)
				fs.unlock = func(context.Context) error { return c.err }
				s.up.command(gatepost.Command{ID: "c1", Device: "gate", Verb: "unlock", Issued: time.Now()})
				time.Sleep(time.Second)
				rs := s.up.results("c1")
				if len(rs) != 1 || fmt.Sprintf("%s %s", rs[0].Status, rs[0].Error.Code) != c.want {
					t.Errorf("got %+v, want %s", rs, c.want)
				}
				s.halt(t)
			})
		})
	}
}

// TestUnlockThatCouldNotGoOutInTimeExpires: the terminal is busy for longer than the command stays fresh.
func TestUnlockThatCouldNotGoOutInTimeExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, fs := gateSite(t, nil)
		fs.unlock = func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }
		s.up.command(gatepost.Command{ID: "c1", Device: "gate", Verb: "unlock", Issued: time.Now().Add(-7 * time.Second)})
		time.Sleep(time.Second)
		rs := s.up.results("c1")
		if len(rs) != 2 || rs[1].Status != gatepost.StatusExpired || fs.opened() != 0 {
			t.Errorf("got %+v and %d openings, want accepted, expired and none", rs, fs.opened())
		}
		s.halt(t)
	})
}

// TestCommandLeftOpenByADeathIsUnknownOnce: what a killed agent leaves in its ledger.
func TestCommandLeftOpenByADeathIsUnknownOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := gatepost.Command{ID: "c1", Device: "gate", Verb: "unlock", Issued: time.Now()}
		b, err := book.Open(t.Context(), filepath.Join(dir, "book.db"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if known, err := b.Begin(t.Context(), c, time.Now()); err != nil || known != nil {
			t.Fatal(known, err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			fs := newFakeSession()
			s := newSite(t, dir, &fakeDevice{open: func(int) (gatepost.Session, error) { return fs, nil }}, nil)
			time.Sleep(time.Second)
			s.up.command(c)
			time.Sleep(time.Second)
			for _, r := range s.up.results("c1") {
				if r.Status != gatepost.StatusUnknown {
					t.Errorf("answered %s, want unknown", r.Status)
				}
			}
			if fs.opened() != 0 {
				t.Error("it was run after the death")
			}
			s.halt(t)
		}
	})
}

func TestUnavailableTerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, t.TempDir(), &fakeDevice{open: func(int) (gatepost.Session, error) { return nil, errors.New("no route to host") }}, nil)
		time.Sleep(time.Second)
		s.up.command(gatepost.Command{ID: "c1", Device: "gate", Verb: "unlock", Issued: time.Now()})
		time.Sleep(time.Second)
		rs := s.up.results("c1")
		if len(rs) != 1 || rs[0].Status != gatepost.StatusUnavailable || rs[0].Error.Message != "gate is in state backoff: no route to host" {
			t.Errorf("got %+v", rs)
		}
		s.halt(t)
	})
}

func TestSyncTimeNeedsAGoodClockOrATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, fs := gateSite(t, func(o *Options) { o.Trusted = false })
		s.up.command(gatepost.Command{ID: "bare", Device: "gate", Verb: "sync_time"})
		s.up.command(gatepost.Command{ID: "told", Device: "gate", Verb: "sync_time", Args: json.RawMessage(`{"time":"2026-03-01T12:00:00"}`), Challenge: s.up.hello.Challenge})
		time.Sleep(time.Second)
		if rs := s.up.results("bare"); len(rs) != 1 || rs[0].Error == nil || rs[0].Error.Code != "clock_unsynced" {
			t.Errorf("bare: %+v", rs)
		}
		if rs := s.up.results("told"); len(rs) != 1 || rs[0].Status != gatepost.StatusDone {
			t.Errorf("told: %+v", rs)
		}
		if len(fs.set) != 1 || fs.set[0] != "2026-03-01T12:00:00" {
			t.Errorf("clock set to %v", fs.set)
		}
		s.halt(t)
	})
}

func TestPullReadsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, fs := gateSite(t, nil)
		fs.mu.Lock()
		fs.log = []gatepost.Record{punch("1", "2026-01-01T08:00:00"), punch("2", "2026-01-01T08:00:01")}
		fs.mu.Unlock()
		s.up.command(gatepost.Command{ID: "p1", Device: "gate", Verb: "pull"})
		s.up.command(gatepost.Command{ID: "p2", Device: "gate", Verb: "pull"})
		time.Sleep(time.Second)
		for id, want := range map[string]string{"p1": `{"new":2,"read":2}`, "p2": `{"new":0,"read":2}`} {
			if rs := s.up.results(id); len(rs) != 1 || string(rs[0].Data) != want {
				t.Errorf("%s: %+v, want %s", id, rs, want)
			}
		}
		s.halt(t)
	})
}

// TestCommandOpensAShortConnection: between short connections a command brings one about, and holds it while it runs.
func TestCommandOpensAShortConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var doors int
		dev := &fakeDevice{}
		dev.open = func(n int) (gatepost.Session, error) {
			fs := newFakeSession()
			if n <= kicksBeforeShort {
				time.AfterFunc(2*time.Second, fs.cut)
			}
			fs.unlock = func(context.Context) error {
				select {
				case <-time.After(3 * time.Second): // longer than a short connection
					doors++
					return nil
				case <-fs.lost:
					return gatepost.ErrOutcomeUnknown
				}
			}
			return fs, nil
		}
		s := newSite(t, t.TempDir(), dev, func(o *Options) { o.Devices[0].Poll = time.Hour })
		time.Sleep(5 * time.Minute)
		if s.device("gate").session != nil {
			t.Fatal("the connection is not a short one")
		}
		r, err := s.Do(t.Context(), gatepost.Command{Device: "gate", Verb: "unlock", Local: true})
		if err != nil || r.Status != gatepost.StatusDone || doors != 1 {
			t.Errorf("%+v, %v, %d doors", r, err, doors)
		}
		r, err = s.Do(t.Context(), gatepost.Command{Device: "gate", Verb: "sync_time", Local: true})
		if err != nil || r.Status != gatepost.StatusDone {
			t.Errorf("sync_time: %+v %+v, %v", r, r.Error, err)
		}
		s.halt(t)
	})
}
