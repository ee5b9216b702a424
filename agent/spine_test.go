package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"gatepost"
	"gatepost/buffer"
	"gatepost/drivers/zk"
	"gatepost/drivers/zk/zksim"

	"go.yaml.in/yaml/v4"
)

// Here the agent meets a simulated terminal on a real socket through the real driver.

// zkSite is a site whose terminal "gate" is sim.
func zkSite(t *testing.T, sim *zksim.Terminal, change func(*Options)) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := sim.Serve(ctx, l); err != nil {
			t.Errorf("terminal: %v", err)
		}
	})
	t.Cleanup(func() { stop(); wg.Wait() })
	dev, err := zk.Driver().New(func(into any) error {
		return yaml.Unmarshal([]byte("address: "+l.Addr().String()), into)
	}, gatepost.Env{ID: "gate", Log: testLog(t), State: noState{}})
	if err != nil {
		t.Fatal(err)
	}
	return newSite(t, t.TempDir(), nil, func(o *Options) {
		o.Devices[0].Device = dev
		o.Devices[0].Poll = 50 * time.Millisecond
		o.ReconnectWindow = 10 * time.Millisecond
		if change != nil {
			change(o)
		}
	})
}

// noState forgets.
type noState struct{}

func (noState) Get(context.Context, string) (string, error) { return "", nil }
func (noState) Put(context.Context, string, string) error   { return nil }

// balance waits until the far side has each of the terminal's records once, and nothing else under another id.
func (s *site) balance(t *testing.T, want map[string]int) {
	t.Helper()
	total := 0
	for _, n := range want {
		total += n
	}
	until(t, fmt.Sprintf("%d punches", total), func() bool { return len(s.byID()) >= total })
	got := map[string]int{}
	for _, what := range s.byID() {
		got[what]++
	}
	for what, n := range want {
		if got[what] != n {
			t.Errorf("%s: %d arrived, want %d", what, got[what], n)
		}
	}
	for what, n := range got {
		if want[what] == 0 {
			t.Errorf("%s arrived %d times and is in no log", what, n)
		}
	}
}

// byID is what arrived: record id -> user and time.
func (s *site) byID() map[gatepost.ID]string {
	out := map[gatepost.ID]string{}
	for _, r := range s.up.received(gatepost.KindPunch) {
		var p gatepost.Punch
		if json.Unmarshal(r.Data, &p) == nil {
			out[r.ID] = p.User + " " + r.TimeRaw
		}
	}
	return out
}

// logOf adds what the terminal's log holds to want; equal entries of one log count apart, those of two readings do not.
func logOf(sim *zksim.Terminal, want map[string]int) map[string]int {
	now := map[string]int{}
	for _, e := range sim.Log(0, sim.State().Records) {
		now[e.User+" "+string(e.Time)]++
	}
	for what, n := range now {
		want[what] = max(want[what], n)
	}
	return want
}

func TestClearedWrappedAndRewrittenLogs(t *testing.T) {
	sim := zksim.New(zksim.Options{Users: 20, Records: 300, Capacity: 400, Zone: time.UTC})
	s := zkSite(t, sim, nil)
	want := logOf(sim, map[string]int{})
	s.balance(t, want)

	for _, c := range []struct{ fault, event string }{{"rewrite", "log_rewritten"}, {"clear", "log_cleared"}} {
		if err := sim.Fault(zksim.Fault{Kind: c.fault}); err != nil {
			t.Fatal(err)
		}
		if c.fault == "clear" { // the next punches come into an empty log
			until(t, "an event "+c.event, func() bool { return hasEvent(s.up, c.event) })
		}
		for n := range 5 {
			if err := sim.Punch(zksim.Punch{User: fmt.Sprint(n + 1)}); err != nil {
				t.Fatal(err)
			}
		}
		s.balance(t, logOf(sim, want))
		if c.fault == "rewrite" {
			// A rewritten log is seen at the next full read, if its length did not change.
			if _, err := s.Do(t.Context(), gatepost.Command{Device: "gate", Verb: "pull", Local: true}); err != nil {
				t.Fatal(err)
			}
			s.balance(t, logOf(sim, want))
		}
		until(t, "an event "+c.event, func() bool { return hasEvent(s.up, c.event) })
	}
	s.halt(t)
}

func TestWrappingLogLosesNothing(t *testing.T) {
	sim := zksim.New(zksim.Options{Users: 20, Records: 90, Capacity: 100, Zone: time.UTC})
	s := zkSite(t, sim, nil)
	want := logOf(sim, map[string]int{})
	s.balance(t, want)
	for n := range 300 { // three times round
		if err := sim.Punch(zksim.Punch{User: fmt.Sprint(1000 + n)}); err != nil {
			t.Fatal(err)
		}
		logOf(sim, want)
		if n%40 == 39 {
			s.balance(t, want)
		}
	}
	s.balance(t, want)
	s.halt(t)
}

func TestClockJumpLosesAndDoublesNothing(t *testing.T) {
	sim := zksim.New(zksim.Options{Users: 5, Records: 50, Zone: time.UTC})
	s := zkSite(t, sim, nil)
	want := logOf(sim, map[string]int{})
	for _, jump := range []time.Duration{-3 * time.Hour, 26 * time.Hour, -23 * time.Hour} {
		if err := sim.Fault(zksim.Fault{Kind: "clock", Duration: jump}); err != nil {
			t.Fatal(err)
		}
		for n := range 10 {
			if err := sim.Punch(zksim.Punch{User: fmt.Sprint(n%5 + 1), Count: 1 + n%2}); err != nil {
				t.Fatal(err)
			}
		}
		s.balance(t, logOf(sim, want))
	}
	s.halt(t)
}

// TestFullBufferLeavesPunchesWithTheTerminal: with no room the terminal is told nothing and keeps its records; when the
// link is back and room again, they come.
func TestFullBufferLeavesPunchesWithTheTerminal(t *testing.T) {
	sim := zksim.New(zksim.Options{Users: 20, Records: 20, Zone: time.UTC})
	var mu sync.Mutex
	away := true
	s := zkSite(t, sim, func(o *Options) {
		small, err := buffer.Open(t.Context(), t.TempDir()+"/records.db", buffer.Options{MaxBytes: 64 << 10, Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { small.Close() })
		o.Store = small
		o.Uplinks[0].Uplink.(*fakeUplink).dial = func(int) error {
			mu.Lock()
			defer mu.Unlock()
			if away {
				return context.DeadlineExceeded
			}
			return nil
		}
	})
	until(t, "a terminal online", func() bool { return s.state("gate") == gatepost.StateOnline })
	for n := range 2000 {
		if err := sim.Punch(zksim.Punch{User: fmt.Sprint(n + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "a full buffer", func() bool { return s.Report().Buffer.Full })
	r, err := s.Do(t.Context(), gatepost.Command{Device: "gate", Verb: "unlock", Local: true})
	if err != nil || r.Status != gatepost.StatusDone {
		t.Errorf("unlock with a full buffer: %+v, %v", r, err)
	}
	mu.Lock()
	away = false
	mu.Unlock()
	deadline := time.Now().Add(60 * time.Second)
	want := logOf(sim, map[string]int{})
	for len(s.byID()) < len(want) && time.Now().Before(deadline) {
		<-time.After(20 * time.Millisecond)
	}
	s.balance(t, want)
	s.halt(t)
}

// TestUnlockGoesOutBetweenTwoChunks: a log of 8000 records comes over a slow line meanwhile.
func TestUnlockGoesOutBetweenTwoChunks(t *testing.T) {
	sim := zksim.New(zksim.Options{Users: 20, Records: 8000, Zone: time.UTC})
	if err := sim.Fault(zksim.Fault{Kind: "throttle", Bytes: 150_000}); err != nil {
		t.Fatal(err)
	}
	s := zkSite(t, sim, nil)
	until(t, "the first of the log", func() bool { return len(s.up.received(gatepost.KindPunch)) > 0 })
	for range 3 {
		r, err := s.Do(t.Context(), gatepost.Command{Device: "gate", Verb: "unlock", Local: true})
		if err != nil || r.Status != gatepost.StatusDone {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	if n := len(s.byID()); n >= 8000 {
		t.Errorf("all %d records had come before the door opened; the test proves nothing", n)
	}
	if n := len(sim.State().Doors); n != 3 {
		t.Errorf("%d openings", n)
	}
	s.balance(t, logOf(sim, map[string]int{}))
	s.halt(t)
}
