package agent

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatepost"
	"gatepost/agent/book"
	"gatepost/agent/config"
	"gatepost/buffer"
)

// Each test here keeps a mistake from coming back that was made once.

func one(fs gatepost.Session) *fakeDevice {
	return &fakeDevice{open: func(int) (gatepost.Session, error) { return fs, nil }}
}

func (s *fakeSession) clockSets() []gatepost.Wall {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.set)
}

// statuses is what the far side was told about one command id, in order.
func (u *fakeUplink) statuses(id string) []gatepost.ResultStatus {
	var out []gatepost.ResultStatus
	for _, r := range u.results(id) {
		out = append(out, r.Status)
	}
	return out
}

// TestSerialToldLaterDoublesNothing: records of a terminal that told no serial at first contact keep their ids.
func TestSerialToldLaterDoublesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := []gatepost.Record{punch("1", "2026-01-01T08:00:00"), punch("2", "2026-01-01T08:00:01")}
		first, second := newFakeSession(), newFakeSession()
		first.info.Serial = ""
		first.log, second.log = log, log
		s := newSite(t, t.TempDir(), &fakeDevice{open: func(n int) (gatepost.Session, error) {
			if n == 1 {
				return first, nil
			}
			return second, nil
		}}, nil)
		time.Sleep(time.Second)
		first.cut()
		time.Sleep(5 * time.Minute)
		if n := len(s.up.received(gatepost.KindPunch)); n != 2 {
			t.Errorf("%d punches arrived, want 2", n)
		}
		s.halt(t)
	})
}

// TestPruneSparesPunchesOfANewDay: each punch is the first of its day, and comes while the days that the terminal no
// longer has are pruned.
func TestPruneSparesPunchesOfANewDay(t *testing.T) {
	fs := newFakeSession()
	s := newSite(t, t.TempDir(), one(fs), nil)
	until(t, "a terminal online", func() bool { return s.state("gate") == gatepost.StateOnline })
	d := s.device("gate")
	const days = 300
	var wg sync.WaitGroup
	stored := make(chan struct{})
	wg.Go(func() {
		defer close(stored)
		first := time.Date(2020, 1, 1, 8, 0, 0, 0, time.UTC)
		for i := range days {
			r := punch("1", string(gatepost.WallOf(first.AddDate(0, 0, i))))
			fs.mu.Lock()
			fs.log = append(fs.log, r) // the terminal logs it, then tells it
			fs.mu.Unlock()
			if err := d.store(t.Context(), r); err != nil {
				t.Error(err)
			}
		}
	})
	pull := func() {
		r, err := s.Do(t.Context(), gatepost.Command{Device: "gate", Verb: "pull", Local: true})
		if err != nil || r.Status != gatepost.StatusDone {
			t.Errorf("pull: %+v, %v", r, err)
		}
	}
	for busy := true; busy; {
		select {
		case <-stored:
			busy = false
		default:
			pull()
		}
	}
	wg.Wait()
	pull()
	rs, err := s.store.Read(t.Context(), 0, s.store.Head(), 1<<20, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, r := range rs {
		if r.Kind == gatepost.KindPunch {
			seen[r.TimeRaw]++
		}
	}
	if len(seen) != days {
		t.Errorf("%d punches, want %d", len(seen), days)
	}
	doubled := 0
	for _, n := range seen {
		if n > 1 {
			doubled++
		}
	}
	if doubled > 0 {
		t.Errorf("%d punches were stored more than once", doubled)
	}
	s.halt(t)
}

// TestPullsDoNotLockDoors: neither those of other terminals nor that of the terminal itself.
func TestPullsDoNotLockDoors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow, side := newFakeSession(), newFakeSession()
		slow.info.Serial = "SLOW"
		s := newSite(t, t.TempDir(), one(side), func(o *Options) {
			o.Devices = append(o.Devices, deviceConf("slow", one(slow)))
		})
		time.Sleep(time.Second)
		slow.mu.Lock()
		slow.readGate = make(chan struct{}) // a read that never ends
		slow.mu.Unlock()
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() { s.up.command(gatepost.Command{ID: fmt.Sprint("p", i), Device: "slow", Verb: "pull"}) })
		}
		time.Sleep(10 * time.Minute)
		s.up.command(gatepost.Command{ID: "u1", Device: "gate", Verb: "unlock", Issued: time.Now()})
		s.up.command(gatepost.Command{ID: "u2", Device: "slow", Verb: "unlock", Issued: time.Now()})
		time.Sleep(time.Second)
		if side.opened() != 1 || slow.opened() != 1 {
			t.Errorf("the other door opened %d times, the terminal's own %d times; want once each", side.opened(), slow.opened())
		}
		busy := 0
		for i := range 64 {
			for _, r := range s.up.results(fmt.Sprint("p", i)) {
				if r.Error != nil && r.Error.Code == "busy" {
					busy++
				}
			}
		}
		if busy != 64-maxCommands {
			t.Errorf("%d pulls were answered busy, want %d", busy, 64-maxCommands)
		}
		s.halt(t)
		wg.Wait()
	})
}

// TestFullReadHappensOnShortConnections: however short a terminal's connections are, all of its log is read now and then.
func TestFullReadHappensOnShortConnections(t *testing.T) {
	for _, c := range []struct {
		name  string
		lasts func(n int) time.Duration // the n-th connection; 0: until we close it
	}{
		{"polled with short ones", func(n int) time.Duration {
			if n <= kicksBeforeShort {
				return 2 * time.Second
			}
			return 0
		}},
		{"thrown out before the hour is over", func(int) time.Duration { return 50 * time.Minute }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var opened []*fakeSession
				s := newSite(t, t.TempDir(), &fakeDevice{open: func(n int) (gatepost.Session, error) {
					fs := newFakeSession()
					if d := c.lasts(n); d > 0 {
						time.AfterFunc(d, fs.cut)
					}
					opened = append(opened, fs)
					return fs, nil
				}}, nil)
				time.Sleep(6*time.Hour + time.Minute)
				s.halt(t)
				full := 0
				for _, fs := range opened {
					full += fs.full
				}
				if full < 4 || full > 6 {
					t.Errorf("%d full reads in 6 hours and %d connections, want about one an hour", full, len(opened))
				}
			})
		})
	}
}

// roomSite is a site whose buffer is full and whose link is away until link is called.
func roomSite(t *testing.T, fs *fakeSession) (s *site, link func()) {
	t.Helper()
	var mu sync.Mutex
	away := true
	s = newSite(t, t.TempDir(), one(fs), func(o *Options) {
		small, err := buffer.Open(t.Context(), filepath.Join(o.DataDir, "small.db"), buffer.Options{MaxBytes: 64 << 10, Log: o.Log})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = small.Close() })
		o.Store = small
		o.Uplinks[0].Uplink.(*fakeUplink).dial = func(int) error {
			mu.Lock()
			defer mu.Unlock()
			if away {
				return errors.New("away")
			}
			return nil
		}
	})
	time.Sleep(time.Second)
	for i := 0; ; i++ {
		user := "u"
		if i < 200 {
			user = strings.Repeat(user, 3000) // then fill what is left
		}
		err := s.device("gate").store(t.Context(), gatepost.Record{Data: gatepost.Punch{User: user}})
		switch {
		case i < 200 && errors.Is(err, buffer.ErrFull):
			i = 200
		case errors.Is(err, buffer.ErrFull):
			return s, func() { mu.Lock(); away = false; mu.Unlock() }
		case err != nil:
			t.Fatal(err)
		}
	}
}

// TestResultThatMetAFullBufferFollows: it is told when there is room again, not at the next start.
func TestResultThatMetAFullBufferFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newFakeSession()
		s, link := roomSite(t, fs)
		if r, err := s.Do(t.Context(), gatepost.Command{ID: "c1", Device: "gate", Verb: "unlock", Local: true}); err != nil || r.Status != gatepost.StatusDone {
			t.Errorf("unlock with a full buffer: %+v, %v", r, err)
		}
		if _, err := s.Do(t.Context(), gatepost.Command{ID: "c2", Device: "moon", Verb: "unlock", Local: true}); !errors.Is(err, buffer.ErrFull) {
			t.Errorf("a refusal that could not be written down: %v", err)
		}
		link()
		time.Sleep(10 * time.Minute)
		for id, want := range map[string]gatepost.ResultStatus{"c1": gatepost.StatusDone, "c2": gatepost.StatusRejected} {
			if got := s.up.statuses(id); !slices.Equal(got, []gatepost.ResultStatus{want}) {
				t.Errorf("%s was told %v, want %s once", id, got, want)
			}
		}
		if fs.opened() != 1 {
			t.Errorf("door opened %d times", fs.opened())
		}
		s.halt(t)
	})
}

// TestOneFinalResultAfterAPowerCut: the command and the record of its result were on disk, the ledger's own note of the
// result was not.
func TestOneFinalResultAfterAPowerCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := gatepost.Command{ID: "c1", Device: "gate", Verb: "unlock", Issued: time.Now()}
		s := newSite(t, dir, one(newFakeSession()), nil)
		time.Sleep(time.Second)
		s.up.command(c)
		time.Sleep(time.Second)
		told := s.up.statuses("c1")
		s.halt(t)
		db := openSQL(t, filepath.Join(dir, "book.db"))
		if _, err := db.Exec("UPDATE command SET result=NULL, finished=NULL, reported=0"); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		fs := newFakeSession()
		s = newSite(t, dir, one(fs), nil)
		time.Sleep(time.Second)
		s.up.command(c)
		time.Sleep(time.Second)
		if again := s.up.statuses("c1"); len(again) == 0 {
			t.Error("the repeated command was not answered")
		} else {
			told = append(told, again...)
		}
		for _, status := range told {
			if status != gatepost.StatusDone {
				t.Errorf("told %v, want nothing but done", told)
				break
			}
		}
		if fs.opened() != 0 {
			t.Error("it was run again")
		}
		s.halt(t)
	})
}

func openSQL(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// TestMalformedCommandWithAKnownID gets the answer that the id has.
func TestMalformedCommandWithAKnownID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, fs := gateSite(t, nil)
		c := gatepost.Command{ID: "c1", Device: "gate", Verb: "unlock", Issued: time.Now()}
		bad := gatepost.Delivery{Command: c, Bad: errors.New("ttl_s: is not a number")}
		s.up.command(c)
		s.up.deliver(bad)
		bad.Command.ID = "c2"
		s.up.deliver(bad)
		s.up.command(gatepost.Command{ID: "c2", Device: "gate", Verb: "unlock", Issued: time.Now()})
		time.Sleep(time.Second)
		for id, want := range map[string]gatepost.ResultStatus{"c1": gatepost.StatusDone, "c2": gatepost.StatusRejected} {
			if got := s.up.statuses(id); !slices.Equal(got, []gatepost.ResultStatus{want, want}) {
				t.Errorf("%s was told %v, want %s twice", id, got, want)
			}
		}
		if fs.opened() != 1 {
			t.Errorf("door opened %d times", fs.opened())
		}
		s.halt(t)
	})
}

// TestNoAcceptedAfterTheFinal: not of a command that ends in the instant in which it would be called accepted, nor of one
// that comes a second time while the first is under way.
func TestNoAcceptedAfterTheFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, fs := gateSite(t, nil)
		for i, lasts := range []time.Duration{acceptAfter / 2, acceptAfter, acceptAfter + 1, 2 * acceptAfter} {
			for k := range 5 {
				id := fmt.Sprintf("c%d-%d", i, k)
				fs.mu.Lock()
				fs.unlock = func(context.Context) error { time.Sleep(lasts); return nil }
				fs.mu.Unlock()
				var wg sync.WaitGroup
				for n := range 4 {
					wg.Go(func() {
						time.Sleep(time.Duration(n) * lasts / 3) // the last one comes as the first ends
						s.up.command(gatepost.Command{ID: id, Device: "gate", Verb: "unlock", Issued: time.Now()})
					})
				}
				wg.Wait()
			}
		}
		time.Sleep(time.Second)
		for i := range 4 {
			for k := range 5 {
				got := s.up.statuses(fmt.Sprintf("c%d-%d", i, k))
				accepted := 0
				for n, status := range got {
					if status == gatepost.StatusAccepted {
						accepted++
						if n > 0 {
							t.Errorf("told %v", got)
						}
					}
				}
				if accepted > 1 || len(got) == accepted {
					t.Errorf("told %v, want one final and at most one accepted before it", got)
				}
			}
		}
		if fs.opened() != 20 {
			t.Errorf("door opened %d times, want 20", fs.opened())
		}
		s.halt(t)
	})
}

// TestLivePassesACatchUp: what a terminal's log brings at once does not hold up the next punch on a slow link.
func TestLivePassesACatchUp(t *testing.T) {
	for _, c := range []struct {
		name    string
		records []int           // of one catch-up after another
		within  []time.Duration // the punch behind each
	}{
		{"more than the live lane takes", []int{4000}, []time.Duration{time.Second}},
		// 256 go out before it is known how slow the link is, the rest with the punch behind them.
		{"less", []int{500, 500}, []time.Duration{time.Second, time.Second}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, fs := gateSite(t, func(o *Options) {
					o.Uplinks[0].Uplink.(*fakeUplink).send = func(rs []gatepost.Stored, _ bool) (int, error) {
						time.Sleep(time.Duration(len(rs)) * 10 * time.Millisecond) // 100 records/s
						return len(rs), nil
					}
				})
				total := 0
				for i, n := range c.records {
					s.putPunches(t, total, n)
					total += n + 1
					began := time.Now()
					wall := fmt.Sprintf("2026-02-01T08:00:%02d", i)
					fs.live <- punch("live", wall)
					until(t, "the live punch", func() bool {
						return slices.ContainsFunc(s.up.received(gatepost.KindPunch), func(r sent) bool { return r.TimeRaw == wall })
					})
					if took := time.Since(began); took > c.within[i] {
						t.Errorf("the punch behind %d records took %s", n, took)
					}
					time.Sleep(5 * time.Minute)
				}
				if n := len(s.up.received(gatepost.KindPunch)); n != total {
					t.Errorf("%d punches arrived, want %d", n, total)
				}
				s.halt(t)
			})
		})
	}
}

// TestLateUnlockIsNotSent: the ledger's disk was slower than the command stays fresh.
func TestLateUnlockIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, fs := gateSite(t, nil)
		c := gatepost.Command{ID: "c1", Device: "gate", Verb: "unlock", Issued: time.Now()}
		j, refused := s.judge(c, nil, time.Now())
		if refused != nil {
			t.Fatalf("%+v", refused)
		}
		time.Sleep(time.Minute)
		if r := s.perform(t.Context(), j, c); r.Status != gatepost.StatusExpired {
			t.Errorf("answered %s, want expired", r.Status)
		}
		if fs.opened() != 0 {
			t.Error("the door opened a minute late")
		}
		s.halt(t)
	})
}

// TestTimeToldLateIsNotSet: a time is true when it is told. A command without one may wait, as the agent's own time does not age.
func TestTimeToldLateIsNotSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, fs := gateSite(t, nil)
		told := json.RawMessage(`{"time":"` + string(gatepost.WallOf(time.Now().UTC())) + `"}`)
		undated := gatepost.Command{ID: "undated", Device: "gate", Verb: "sync_time", Args: told}
		late := gatepost.Command{ID: "late", Device: "gate", Verb: "sync_time", Args: told, Issued: time.Now()}
		bare := gatepost.Command{ID: "bare", Device: "gate", Verb: "sync_time", Issued: time.Now()}
		time.Sleep(30 * time.Minute)
		for _, c := range []gatepost.Command{undated, late} {
			s.up.command(c)
		}
		time.Sleep(time.Second)
		if sets := fs.clockSets(); len(sets) != 0 {
			t.Errorf("the clock was set to %s, which is late", sets)
		}
		s.up.command(bare)
		time.Sleep(time.Second)
		for id, want := range map[string]gatepost.ResultStatus{"undated": gatepost.StatusRejected, "late": gatepost.StatusExpired, "bare": gatepost.StatusDone} {
			if got := s.up.statuses(id); !slices.Equal(got, []gatepost.ResultStatus{want}) {
				t.Errorf("%s was told %v, want %s", id, got, want)
			}
		}
		s.halt(t)
	})
}

// TestControlBeforeStart: the command line may ask before Run has begun; then nothing is entered that the start would take
// for what an earlier run left.
func TestControlBeforeStart(t *testing.T) {
	dir := t.TempDir()
	b, err := book.Open(t.Context(), filepath.Join(dir, "book.db"), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	st, err := buffer.Open(t.Context(), filepath.Join(dir, "records.db"), buffer.Options{Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	a := New(Options{ID: "site-1", Store: st, Book: b, Log: testLog(t), DataDir: dir, Devices: []config.Device{deviceConf("gate", one(newFakeSession()))}})
	if _, err := a.Do(t.Context(), gatepost.Command{ID: "c1", Verb: "ping", Local: true}); !errors.Is(err, errStopping) {
		t.Errorf("before the start: %v", err)
	}
	if e, err := b.Command(t.Context(), "c1"); e != nil || err != nil {
		t.Errorf("it is in the ledger: %+v, %v", e, err)
	}
	if up := a.Report().Uptime; up < 0 || up > 60 {
		t.Errorf("up for %g s before the start", up)
	}
}

// TestReportWhileStarting is for the race detector.
func TestReportWhileStarting(t *testing.T) {
	s := newSite(t, t.TempDir(), one(newFakeSession()), nil)
	for range 100 {
		s.Report()
	}
	until(t, "a terminal online", func() bool { s.Report(); return s.state("gate") == gatepost.StateOnline })
	s.halt(t)
}

// TestCommandForADeviceTakenAwaySaysSo: its terminal goes out of the config while it waits.
func TestCommandForADeviceTakenAwaySaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, fs := gateSite(t, nil)
		fs.mu.Lock()
		fs.readGate = make(chan struct{})
		fs.mu.Unlock()
		var wg sync.WaitGroup
		wg.Go(func() { s.up.command(gatepost.Command{ID: "first", Device: "gate", Verb: "pull"}) })
		time.Sleep(time.Second)
		wg.Go(func() { s.up.command(gatepost.Command{ID: "waiting", Device: "gate", Verb: "pull"}) })
		time.Sleep(time.Second)
		if err := s.Reload(t.Context(), nil, s.opts.Uplinks); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		time.Sleep(time.Second)
		rs := s.up.results("waiting")
		if len(rs) != 2 || rs[1].Error == nil || rs[1].Error.Message != "gate was taken out of the config, or its settings changed" {
			t.Errorf("told %+v", rs)
		}
		s.halt(t)
	})
}

// TestDeadBatteryIsNoZone: a terminal whose clock lost years is set, though the years are whole quarter-hours.
func TestDeadBatteryIsNoZone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newFakeSession()
		fs.skew = -20 * 365 * 24 * time.Hour
		s := newSite(t, t.TempDir(), one(fs), func(o *Options) { o.Devices[0].SyncClock = 30 * time.Second })
		time.Sleep(time.Minute)
		if sets := fs.clockSets(); len(sets) != 1 {
			t.Errorf("clock set %d times, want once", len(sets))
		}
		if hasEvent(s.up, "zone_suspect") {
			t.Error("a zone is suspected")
		}
		s.halt(t)
	})
}

// TestWordsOfStrangersAreNotKept: what the dictionary and the ledger hold does not grow with what anybody sends.
func TestWordsOfStrangersAreNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newSite(t, dir, one(newFakeSession()), nil)
		time.Sleep(time.Second)
		const n = 50
		for k := range n {
			s.up.command(gatepost.Command{ID: fmt.Sprint("c", k), Device: gatepost.DeviceID(fmt.Sprint("stranger", k) + strings.Repeat("x", 60000)),
				Verb: []string{"unlock", strings.Repeat("v", 60000)}[k%2], Challenge: strings.Repeat("c", 60000), Issued: time.Now()})
		}
		time.Sleep(time.Second)
		for k := range n {
			rs := s.up.results(fmt.Sprint("c", k))
			if len(rs) != 1 || rs[0].Status != gatepost.StatusRejected || len(rs[0].Device) > maxWord+1 || len(rs[0].Verb) > maxWord+1 {
				t.Fatalf("told %+v", rs)
			}
		}
		s.halt(t)
		records, ledger := openSQL(t, filepath.Join(dir, "records.db")), openSQL(t, filepath.Join(dir, "book.db"))
		defer records.Close()
		defer ledger.Close()
		var words, longest int
		if err := records.QueryRow("SELECT count(*), max(length(w)) FROM word").Scan(&words, &longest); err != nil {
			t.Fatal(err)
		}
		if words >= n || longest > maxWord {
			t.Errorf("%d words, the longest of %d bytes", words, longest)
		}
		if err := ledger.QueryRow("SELECT max(length(request) + length(result)) FROM command").Scan(&longest); err != nil {
			t.Fatal(err)
		}
		if longest > 2048 {
			t.Errorf("a row of the ledger holds %d bytes", longest)
		}
	})
}

// userSession is a terminal with users.
type userSession struct {
	*fakeSession
	users []gatepost.User
}

func (s userSession) Users(context.Context) ([]gatepost.User, error) { return s.users, nil }

func usersOf(n int, name string) []gatepost.User {
	us := make([]gatepost.User, n)
	for i := range us {
		us[i] = gatepost.User{ID: fmt.Sprint(i), Name: name, Card: "0012345678", Privilege: "user", Group: 1, Index: i + 1}
	}
	return us
}

func TestUsersArePaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, t.TempDir(), one(userSession{newFakeSession(), usersOf(1200, "Some Body")}), nil)
		time.Sleep(time.Second)
		for _, c := range []struct {
			args          string
			offset, users int
		}{
			{``, 0, 500},
			{`{"offset":1000}`, 1000, 200},
			{`{"offset":499,"limit":2}`, 499, 2},
			{`{"offset":5000}`, 1200, 0},
		} {
			r, err := s.Do(t.Context(), gatepost.Command{Device: "gate", Verb: "users_list", Args: json.RawMessage(c.args), Local: true})
			var got struct {
				Count, Offset int
				Users         []struct{ User string }
			}
			if err != nil || r.Status != gatepost.StatusDone || json.Unmarshal(r.Data, &got) != nil {
				t.Fatalf("%s: %s %+v, %v", c.args, r.Status, r.Error, err)
			}
			if got.Count != 1200 || got.Offset != c.offset || len(got.Users) != c.users || got.Users == nil {
				t.Errorf("%s: %d users from %d of %d, want %d from %d", c.args, len(got.Users), got.Offset, got.Count, c.users, c.offset)
			}
			if len(got.Users) > 0 && got.Users[0].User != fmt.Sprint(c.offset) {
				t.Errorf("%s: begins with user %s", c.args, got.Users[0].User)
			}
		}
		for _, args := range []string{`{"offset":-1}`, `{"limit":0}`, `{"limit":501}`} {
			r, err := s.Do(t.Context(), gatepost.Command{Device: "gate", Verb: "users_list", Args: json.RawMessage(args), Local: true})
			if err != nil || r.Error == nil || r.Error.Code != "bad_args" {
				t.Errorf("%s: %+v, %v", args, r, err)
			}
		}
		s.halt(t)
	})
}

// TestTooLargeResult: an answer that no uplink takes is refused with a word on it, not parked.
func TestTooLargeResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, t.TempDir(), one(userSession{newFakeSession(), usersOf(200, strings.Repeat("n", 1024))}), nil)
		time.Sleep(time.Second)
		s.up.command(gatepost.Command{ID: "all", Device: "gate", Verb: "users_list"})
		s.up.command(gatepost.Command{ID: "some", Device: "gate", Verb: "users_list", Args: json.RawMessage(`{"limit":50}`)})
		time.Sleep(time.Second)
		if rs := s.up.results("all"); len(rs) != 1 || rs[0].Status != gatepost.StatusFailed || rs[0].Error.Code != "too_large" || len(rs[0].Data) > 0 {
			t.Errorf("told %+v", rs)
		}
		if got := s.up.statuses("some"); !slices.Equal(got, []gatepost.ResultStatus{gatepost.StatusDone}) {
			t.Errorf("told %v of a part", got)
		}
		s.halt(t)
	})
}

// TestRefusalsArePaced: a flood of nonsense fills no disk, delays no door, and does not hold up the agent's end.
func TestRefusalsArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, fs := gateSite(t, nil)
		began := time.Now()
		refused := func(i int) { s.up.command(gatepost.Command{ID: fmt.Sprint("c", i), Verb: "explode"}) }
		for i := range refuseBurst {
			refused(i)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("the first %d took %s", refuseBurst, took)
		}
		for i := range 20 {
			refused(refuseBurst + i)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("20 more took %s, want a second", took)
		}
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() { refused(1000 + i) })
		}
		synctest.Wait()
		began = time.Now()
		s.up.command(gatepost.Command{ID: "door", Device: "gate", Verb: "unlock", Issued: time.Now()})
		if took := time.Since(began); took > 0 || fs.opened() != 1 {
			t.Errorf("the door opened %d times, after %s", fs.opened(), took)
		}
		s.halt(t)
		if took := time.Since(began); took > lastWords {
			t.Errorf("took %s to stop", took)
		}
		wg.Wait()
	})
}

// TestClockNeverBelowTheLastKnownTime: a board without a battery wakes years back.
func TestClockNeverBelowTheLastKnownTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		known := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
		s := newSite(t, dir, one(newFakeSession()), func(o *Options) { o.Now = func() time.Time { return known } })
		time.Sleep(time.Second)
		s.halt(t)
		s = newSite(t, dir, one(newFakeSession()), func(o *Options) {
			o.Now = func() time.Time { return time.Unix(60, 0) }
			o.Trusted = false
		})
		time.Sleep(time.Second)
		events := s.up.received(gatepost.KindEvent)
		if len(events) == 0 {
			t.Error("nothing was told")
		}
		for _, r := range events {
			if r.Received.Before(known) || r.Clock != gatepost.ClockUnsynced {
				t.Errorf("a record was received at %s by a clock that is %s", r.Received, r.Clock)
			}
		}
		if h := s.heartbeat("cloud"); h.Time.Before(known) || h.Uptime < 0 || h.Uptime > 60 {
			t.Errorf("the heartbeat says %s, up for %g s", h.Time, h.Uptime)
		}
		if b := s.birth(); b.Started.Before(known.Add(-time.Minute)) {
			t.Errorf("the birth document says: started %s", b.Started)
		}
		s.halt(t)
	})
}
