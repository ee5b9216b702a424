package buffer

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gatepost"
)

func TestPlaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, path, options(t))
	put(t, s, 10, punches("SN1", 0, 10)...)
	uplinks := []Uplink{{ID: "cloud", Required: true}, {ID: "second", FromOldest: true}}
	set := func() {
		t.Helper()
		if err := s.SetUplinks(t.Context(), uplinks); err != nil {
			t.Fatal(err)
		}
	}
	check := func(uplink string, want Place) {
		t.Helper()
		if got := s.Place(uplink); got != want {
			t.Errorf("%s is at %+v, want %+v", uplink, got, want)
		}
	}
	set()
	check("cloud", at(10))
	check("second", at(0))
	check("nobody", Place{})
	put(t, s, 10, punches("SN1", 10, 20)...)
	for _, step := range []struct{ set, want Place }{
		{Place{10, 15, 16}, Place{10, 15, 16}},
		{Place{12, 15, 16}, Place{12, 15, 16}},
		{Place{11, 15, 18}, Place{12, 15, 18}}, // never back
		{Place{15, 15, 17}, at(18)},            // the lanes met
		{Place{99, 99, 99}, at(20)},            // never beyond what there is
		{Place{1, 2, 3}, at(20)},
	} {
		s.SetPlace("cloud", step.set)
		check("cloud", step.want)
	}
	s.SetPlace("second", Place{3, 7, 12})
	want := map[string]gatepost.Backlog{"cloud": {}, "second": {Records: 12, Bytes: 12 * s.Stats().Bytes / 20}}
	if diff := cmp.Diff(want, s.Stats().Uplinks); diff != "" {
		t.Error(diff)
	}
	if err := s.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, path, options(t))
	set()
	check("cloud", at(20))
	check("second", Place{3, 7, 12})
	uplinks = uplinks[:1]
	set()
	check("second", Place{})
	uplinks = append(uplinks, Uplink{ID: "second"})
	set()
	check("second", at(20))
}

func TestPlacesAreSavedWithin200ms(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, path, options(t))
	if err := s.SetUplinks(t.Context(), []Uplink{{ID: "cloud", Required: true}}); err != nil {
		t.Fatal(err)
	}
	put(t, s, 5, punches("SN1", 0, 5)...)
	done := make(chan error, 1)
	run(t, s, done)
	start := time.Now()
	before := s.Stats().Commits
	s.SetPlace("cloud", at(5))
	waitFor(t, func() bool { return s.Stats().Commits > before })
	if took := time.Since(start); took < saveDelay || took > 5*time.Second {
		t.Errorf("saved after %v", took)
	}
}

// waitFor returns once ok holds.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("waited too long")
		}
	}
}

func TestDeliveredSegmentsAreGivenBack(t *testing.T) {
	o := options(t)
	now := day0
	o.Now = func() time.Time { return now }
	o.MaxAge = time.Hour
	s := open(t, filepath.Join(t.TempDir(), "records.db"), o)
	upkeep := func(want int64) {
		t.Helper()
		if err := s.upkeep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := s.Stats().Records; n != want {
			t.Fatalf("%d records left, want %d", n, want)
		}
	}
	put(t, s, 1000, punches("SN1", 0, 1000)...) // the last one 333 minutes after day0
	now = now.Add(24 * time.Hour)
	upkeep(1000) // nobody said which uplinks there are
	if err := s.SetUplinks(t.Context(), []Uplink{{ID: "a", Required: true, FromOldest: true}, {ID: "b", FromOldest: true}}); err != nil {
		t.Fatal(err)
	}
	s.SetPlace("a", at(1000))
	upkeep(1000)
	s.SetPlace("b", Place{0, 999, 1000})
	upkeep(1000)
	now = day0.Add(5 * time.Hour)
	s.SetPlace("b", at(1000))
	upkeep(1000) // too young
	now = now.Add(2 * time.Hour)
	upkeep(0)
}

func small(t testing.TB) Options {
	o := options(t)
	o.MaxBytes = 200_000
	return o
}

// fill puts records of a kind until no more fit: by twenty as long as that goes, then singly.
func fill(t testing.TB, s *Store, kind gatepost.Kind) (n int) {
	t.Helper()
	for group := 20; ; {
		var es []Entry
		for i := range group {
			es = append(es, ofKind(kind, n+i))
		}
		switch added, err := s.Put(t.Context(), es...); {
		case errors.Is(err, ErrFull) && group == 1:
			return n
		case errors.Is(err, ErrFull):
			group = 1
		case err != nil || added != group:
			t.Fatalf("put %d: %d, %v", n, added, err)
		default:
			n += group
		}
		if n > 10_000 {
			t.Fatal("never full")
		}
	}
}

func TestFullKeepsPunches(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "records.db"), small(t))
	if err := s.SetUplinks(t.Context(), []Uplink{{ID: "cloud", Required: true}}); err != nil {
		t.Fatal(err)
	}
	n := fill(t, s, gatepost.KindPunch)
	if n < 1000 || !s.Stats().Full {
		t.Fatalf("full after %d: %+v", n, s.Stats())
	}
	_, err := s.Put(t.Context(), ofKind(gatepost.KindPunch, n))
	if got, want := err.Error(), s.path+": the record buffer is full"; got != want || gatepost.ClassOf(err) != gatepost.Temporary {
		t.Errorf("%q, want %q", got, want)
	}
	if gatepost.HintOf(err) != fullHint {
		t.Errorf("hint %q", gatepost.HintOf(err))
	}
	if got := len(readAll(t, s)); got != n {
		t.Fatalf("%d records of %d", got, n)
	}
	s.SetPlace("cloud", at(int64(n/2)))
	put(t, s, 1, ofKind(gatepost.KindPunch, n))
	if st := s.Stats(); st.Full || st.Uplinks["cloud"].Records != int64(n-n/2+1) {
		t.Errorf("%+v", st)
	}
	first := readAll(t, s)[0].Seq
	if first > int64(n/2+1) {
		t.Errorf("undelivered record before %d deleted", first)
	}
}

func TestFullTakesDoublesAllTheSame(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "records.db"), small(t))
	put(t, s, 500, punches("SN1", 0, 500)...)
	if err := s.SetUplinks(t.Context(), []Uplink{{ID: "cloud", Required: true, FromOldest: true}}); err != nil {
		t.Fatal(err)
	}
	n := fill(t, s, gatepost.KindPunch)
	put(t, s, 0, punches("SN1", 0, 500)...)
	seen := s.Stats().Seen
	if _, err := s.Put(t.Context(), punches("SN1", 0, 510)...); !errors.Is(err, ErrFull) {
		t.Fatalf("put: %v", err)
	}
	if has, err := s.Has(t.Context(), "SN1", punch("SN1", 505).Minute, punch("SN1", 505).ID); has || err != nil || s.Stats().Seen != seen {
		t.Errorf("a punch that was not stored counts as seen: %v, %v", has, err)
	}
	s.SetPlace("cloud", at(int64(n)))
	put(t, s, 10, punches("SN1", 0, 510)...)
}

func TestFullGivesUpTelemetryThenStatus(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "records.db"), small(t))
	if err := s.SetUplinks(t.Context(), []Uplink{{ID: "cloud", Required: true}}); err != nil {
		t.Fatal(err)
	}
	var es []Entry
	for n := range 400 {
		es = append(es, ofKind(gatepost.KindTelemetry, n), ofKind(gatepost.KindStatus, n), ofKind(gatepost.KindResult, n))
	}
	put(t, s, len(es), es...)
	counts := func() map[gatepost.Kind]int {
		m := make(map[gatepost.Kind]int)
		for _, r := range readAll(t, s) {
			m[r.Kind]++
		}
		return m
	}
	var n int
	for n = 0; s.evicted.Telemetry == 0; n++ {
		put(t, s, 1, ofKind(gatepost.KindPunch, n))
	}
	if m := counts(); m[gatepost.KindStatus] != 400 || m[gatepost.KindTelemetry] == 400 {
		t.Errorf("after telemetry: %v", m)
	}
	total := n + fill(t, s, gatepost.KindPunch)
	if diff := cmp.Diff(map[gatepost.Kind]int{gatepost.KindPunch: total, gatepost.KindResult: 400}, counts()); diff != "" {
		t.Error(diff)
	}
	var told []gatepost.Event
	s.o.Event = func(e gatepost.Event) { told = append(told, e) }
	s.tellEvicted()
	s.tell()
	if len(told) != 1 || told[0].Name != "records_evicted" || told[0].Detail.(eviction).Telemetry != 400 || told[0].Detail.(eviction).Status != 400 {
		t.Errorf("events %+v", told)
	}
	if _, err := s.Put(t.Context(), ofKind(gatepost.KindTelemetry, 1)); !errors.Is(err, ErrFull) {
		t.Errorf("telemetry into a file full of punches: %v", err)
	}
}

func TestWithoutUplinksTheOldestGoesWhenRoomIsNeeded(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "records.db"), small(t))
	if err := s.SetUplinks(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < 3000; n += 20 {
		var es []Entry
		for i := range 20 {
			es = append(es, ofKind(gatepost.KindPunch, n+i))
		}
		put(t, s, 20, es...)
	}
	rs := readAll(t, s)
	if len(rs) < 1000 || rs[len(rs)-1].Seq != 3000 || s.Stats().Bytes > s.o.MaxBytes {
		t.Errorf("%d records, stats %+v", len(rs), s.Stats())
	}
}

func TestAnUplinkThatIsNotRequiredIsLeftBehind(t *testing.T) {
	for _, c := range []struct {
		name      string
		records   int
		age       time.Duration
		place     Place
		clock     string
		want      Place
		from, gap int64
	}{
		{"near enough", 200, 6 * 24 * time.Hour, at(0), gatepost.ClockSynced, at(0), 0, 0},
		{"a week behind", 200, 8 * 24 * time.Hour, at(10), gatepost.ClockSynced, at(200), 11, 200},
		{"a week behind by a clock that was wrong", 200, 8 * 24 * time.Hour, at(10), gatepost.ClockUnsynced, at(10), 0, 0},
		{"a quarter behind", 1000, 0, at(5), gatepost.ClockSynced, at(1000), 6, 1000},
		{"its backlog a quarter behind", 1000, 0, Place{5, 900, 990}, gatepost.ClockSynced, at(990), 6, 900},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := small(t)
			o.Now = func() time.Time { return day0.Add(c.age) }
			var told []gatepost.Event
			o.Event = func(e gatepost.Event) { told = append(told, e) }
			s := open(t, filepath.Join(t.TempDir(), "records.db"), o)
			if err := s.SetUplinks(t.Context(), []Uplink{{ID: "a", Required: true}, {ID: "b"}}); err != nil {
				t.Fatal(err)
			}
			es := punches("SN1", 0, c.records)
			for i := range es {
				es[i].Clock, es[i].Received = c.clock, day0
			}
			put(t, s, c.records, es...)
			s.SetPlace("a", at(20))
			s.SetPlace("b", c.place)
			if err := s.upkeep(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.tell()
			if got := s.Place("b"); got != c.want || s.Place("a") != at(20) {
				t.Errorf("at %+v, want %+v", got, c.want)
			}
			var want []gatepost.Event
			if c.gap > 0 {
				want = []gatepost.Event{{
					Name:    "uplink_gap",
					Message: fmt.Sprintf("uplink b was left behind: it will not get records %d to %d", c.from, c.gap),
					Detail:  Gap{Uplink: "b", From: c.from, To: c.gap},
				}}
			}
			if diff := cmp.Diff(want, told); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestStatsTellTheAgeOfWhatWaits(t *testing.T) {
	o := options(t)
	now := day0
	o.Now = func() time.Time { return now }
	s := open(t, filepath.Join(t.TempDir(), "records.db"), o)
	if err := s.SetUplinks(t.Context(), []Uplink{{ID: "a", Required: true}}); err != nil {
		t.Fatal(err)
	}
	put(t, s, 10, punches("SN1", 0, 10)...)
	now = now.Add(time.Hour)
	for _, c := range []struct {
		at   int64
		want float64
	}{{0, 3600}, {3, 3540}, {10, 0}} {
		s.SetPlace("a", at(c.at))
		if err := s.upkeep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := s.Stats().Uplinks["a"].Oldest; got != c.want {
			t.Errorf("at %d the oldest waits for %v s, want %v", c.at, got, c.want)
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, filepath.Join(t.TempDir(), "records.db"), options(t))
		done := make(chan error, 1)
		stop := run(t, s, done)
		synctest.Wait()
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
