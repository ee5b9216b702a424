// Package uplinktest judges every uplink by the same rules, whatever its protocol. An uplink's own tests call [Run] with
// a far side that they control.
package uplinktest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"gatepost"
)

// Subject is an uplink under test and its far side.
type Subject struct {
	Uplink gatepost.Uplink
	// Received lists the ids of the records that the far side has, in order of arrival, doubles included.
	Received func() []gatepost.ID
	// Cut drops every connection at once, without a word; new ones are let in.
	Cut func()
	// Refuse lets no connection in while it is true; those that stand are dropped.
	Refuse func(bool)
	// Hold keeps the far side's answers from arriving while it is true. Nil where that cannot be done.
	Hold func(bool)
	// Command sends a command down. Nil where the protocol has none.
	Command func(id string, device gatepost.DeviceID, verb string)
	// Online says whether the far side takes the agent for connected. Nil where it cannot know.
	Online func() bool
	// Impossible is a record that this uplink can never pass. A zero ID: it passes all.
	Impossible gatepost.Stored
}

// patience is how long anything may take.
const patience = 20 * time.Second

// Run judges the uplink that fresh makes, with a far side of its own, for each test.
func Run(t *testing.T, fresh func(t *testing.T) Subject) {
	for name, test := range map[string]func(*testing.T, Subject){
		"LiveInOrder":      liveInOrder,
		"BacklogInOrder":   backlogInOrder,
		"NothingToSend":    nothingToSend,
		"CutInMidSend":     cutInMidSend,
		"ImpossibleRecord": impossibleRecord,
		"ConcurrentSends":  concurrentSends,
		"CancelSend":       cancelSend,
		"CancelDial":       cancelDial,
		"Refused":          refused,
		"CommandsOnce":     commandsOnce,
		"CloseSaysGoodbye": closeSaysGoodbye,
		"SendAfterClose":   sendAfterClose,
		"Reconnect":        reconnect,
	} {
		t.Run(name, func(t *testing.T) { test(t, fresh(t)) })
	}
}

func liveInOrder(t *testing.T, s Subject)    { inOrder(t, s, false) }
func backlogInOrder(t *testing.T, s Subject) { inOrder(t, s, true) }

func inOrder(t *testing.T, s Subject, replay bool) {
	link := dial(t, s, nil)
	rs := Records(1, 250)
	send(t, link, rs, replay)
	waitFor(t, "all records", func() bool { return len(s.Received()) >= len(rs) })
	if got, want := s.Received(), ids(rs); !slices.Equal(got, want) {
		t.Errorf("the far side has %d records, want %d in the order sent, each once", len(got), len(want))
	}
}

func nothingToSend(t *testing.T, s Subject) {
	link := dial(t, s, nil)
	for _, replay := range []bool{false, true} {
		if n, err := link.Send(t.Context(), nil, replay); n != 0 || err != nil {
			t.Errorf("Send of nothing: %d, %v", n, err)
		}
	}
}

// cutInMidSend is the promise: what was confirmed the far side has, whatever happens.
func cutInMidSend(t *testing.T, s Subject) {
	for round := range 6 {
		replay := round%2 == 1
		link := dial(t, s, nil)
		rs := Records(1+round*100_000, 20_000)
		cut := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			defer close(cut)
			waitFor(t, "the first records", func() bool { return slices.Contains(s.Received(), rs[200].ID) })
			s.Cut()
		})
		n, err := link.Send(t.Context(), rs, replay)
		wg.Wait()
		if err == nil && n < len(rs) {
			t.Fatalf("Send confirmed %d of %d records and gave no reason for the rest", n, len(rs))
		}
		select {
		case <-link.Done():
			if link.Err() == nil {
				t.Error("the link is lost and Err says nothing")
			}
		case <-time.After(patience):
			t.Fatal("the connection was cut and Done stays open")
		}
		has := make(map[gatepost.ID]bool)
		lacking := func() (lacking int) {
			for _, id := range s.Received() {
				has[id] = true
			}
			for _, r := range rs[:n] {
				if !has[r.ID] {
					lacking++
				}
			}
			return lacking
		}
		waitFor(t, "what was confirmed", func() bool { return lacking() == 0 })
		t.Logf("round %d: %d of %d confirmed: %v", round, n, len(rs), err)
		closeLink(t, link)
	}
}

func impossibleRecord(t *testing.T, s Subject) {
	if s.Impossible.ID == (gatepost.ID{}) {
		t.Log("this uplink passes every record")
		return
	}
	link := dial(t, s, nil)
	for i, replay := range []bool{false, true} {
		rs := Records(1+i*1000, 30)
		rs[17] = s.Impossible
		n, err := link.Send(t.Context(), rs, replay)
		if n != 17 || gatepost.ClassOf(err) != gatepost.Permanent {
			t.Fatalf("replay %v: Send confirmed %d with %v, want 17 and a permanent error", replay, n, err)
		}
		send(t, link, rs[18:], replay)
		waitFor(t, "the others", func() bool { return len(s.Received()) == (i+1)*29 })
	}
}

func concurrentSends(t *testing.T, s Subject) {
	link := dial(t, s, nil)
	var wg sync.WaitGroup
	total := 0
	for i := range 6 {
		rs := Records(1+i*1000, 300)
		total += len(rs)
		wg.Go(func() { send(t, link, rs, i%2 == 0) })
	}
	wg.Wait()
	waitFor(t, "all records", func() bool { return len(s.Received()) >= total })
	if got := len(s.Received()); got != total {
		t.Errorf("the far side has %d records, want %d", got, total)
	}
}

func cancelSend(t *testing.T, s Subject) {
	if s.Hold == nil {
		t.Log("the far side cannot hold its answers")
		return
	}
	link := dial(t, s, nil)
	s.Hold(true)
	why := errors.New("enough")
	for _, replay := range []bool{false, true} {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
		began := time.Now()
		n, err := link.Send(ctx, Records(1, 1000), replay)
		if n != 0 || !errors.Is(err, why) {
			t.Errorf("replay %v: Send confirmed %d with %v, want 0 and the cause of the cancellation", replay, n, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("replay %v: Send returned %v after it was cancelled", replay, took)
		}
		cancel(nil)
	}
	s.Hold(false)
}

func cancelDial(t *testing.T, s Subject) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Uplink.Dial(ctx, Hello("cancelled"), func(gatepost.Delivery) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial with a cancelled context: %v", err)
	}
}

func refused(t *testing.T, s Subject) {
	link := dial(t, s, nil)
	s.Refuse(true)
	select {
	case <-link.Done():
	case <-time.After(patience):
		t.Fatal("dropped, and Done stays open")
	}
	began := time.Now()
	if n, err := link.Send(t.Context(), Records(1, 10), false); n != 0 || err == nil {
		t.Errorf("Send over a lost link: %d, %v", n, err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Send over a lost link returned after %v", took)
	}
	if _, err := s.Uplink.Dial(t.Context(), Hello("refused"), func(gatepost.Delivery) {}); err == nil {
		t.Error("Dial succeeded where nothing lets it in")
	}
	s.Refuse(false)
	again := dial(t, s, nil)
	send(t, again, Records(1, 10), false)
	waitFor(t, "the records", func() bool { return len(s.Received()) == 10 })
}

func commandsOnce(t *testing.T, s Subject) {
	if s.Command == nil {
		t.Log("no commands in this protocol")
		return
	}
	got := make(chan gatepost.Delivery, 100)
	dial(t, s, func(d gatepost.Delivery) { got <- d; d.Done() })
	for i := range 10 {
		s.Command(fmt.Sprintf("c%d", i), "gate", "unlock")
	}
	s.Command("last", "", "ping")
	seen := make(map[string]int)
	for len(seen) < 11 {
		select {
		case d := <-got:
			want := gatepost.DeviceID("gate")
			if d.Command.ID == "last" {
				want = ""
			}
			if d.Bad != nil || d.Command.Device != want || d.Command.Retained {
				t.Errorf("command arrived as %+v, %v", d.Command, d.Bad)
			}
			seen[d.Command.ID]++
		case <-time.After(patience):
			t.Fatalf("only %d of 11 commands arrived", len(seen))
		}
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("command %s arrived %d times", id, n)
		}
	}
	if len(got) > 0 {
		t.Errorf("a command arrived twice: %+v", <-got)
	}
}

func closeSaysGoodbye(t *testing.T, s Subject) {
	link := dial(t, s, nil)
	if s.Online != nil {
		waitFor(t, "online", s.Online)
	}
	closeLink(t, link)
	if s.Online != nil {
		waitFor(t, "offline", func() bool { return !s.Online() })
	}
	select {
	case <-link.Done():
	default:
		t.Error("closed, and Done stays open")
	}
	closeLink(t, link) // twice is allowed
}

func sendAfterClose(t *testing.T, s Subject) {
	link := dial(t, s, nil)
	closeLink(t, link)
	if n, err := link.Send(t.Context(), Records(1, 3), false); n != 0 || err == nil {
		t.Errorf("Send after Close: %d, %v", n, err)
	}
	if err := link.Beat(t.Context(), gatepost.Heartbeat{}); err == nil {
		t.Error("Beat after Close succeeded")
	}
}

// reconnect sends through one link after the other, as an agent does for years.
func reconnect(t *testing.T, s Subject) {
	total := 0
	for i := range 5 {
		link := dial(t, s, nil)
		rs := Records(1+i*100, 20)
		send(t, link, rs, i%2 == 0)
		total += len(rs)
		closeLink(t, link)
	}
	waitFor(t, "all records", func() bool { return len(s.Received()) >= total })
	if got := len(s.Received()); got != total {
		t.Errorf("the far side has %d records, want %d", got, total)
	}
}

// Hello is what an agent says, under a session of the given name.
func Hello(session string) gatepost.Hello {
	return gatepost.Hello{
		Version: "1.2.3", Session: session, Challenge: "challenge-of-" + session,
		Birth: gatepost.Birth{Agent: "site-042", Version: "1.2.3", Zone: "Asia/Jakarta", Started: time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC),
			Board: gatepost.Board{Model: "Raspberry Pi 3", OS: "linux", Arch: "arm64"}, Verbs: []string{"devices", "ping"}, Verify: "issued_at"},
	}
}

// Records makes n punches with consecutive seq from first, each with an ID of its own.
func Records(first, n int) []gatepost.Stored {
	rs := make([]gatepost.Stored, n)
	start := time.Date(2026, 11, 22, 1, 0, 0, 0, time.UTC)
	for i := range rs {
		seq := int64(first + i)
		at := start.Add(time.Duration(seq) * time.Second)
		rs[i] = gatepost.Stored{
			ID: gatepost.NewID("SN1", gatepost.KindPunch, fmt.Sprint(seq)), Log: "log-1", Seq: seq, Device: "gate", Kind: gatepost.KindPunch,
			Time: at, TimeRaw: string(gatepost.WallOf(at)), Received: at.Add(time.Second), Clock: gatepost.ClockSynced,
			Data: json.RawMessage(fmt.Sprintf(`{"user":"%04d","method":"finger","direction":"in"}`, seq)),
		}
	}
	return rs
}

var sessions struct {
	sync.Mutex
	n int
}

func dial(t *testing.T, s Subject, take func(gatepost.Delivery)) gatepost.Link {
	t.Helper()
	sessions.Lock()
	sessions.n++
	session := fmt.Sprintf("session-%d", sessions.n)
	sessions.Unlock()
	if take == nil {
		take = func(d gatepost.Delivery) { d.Done() }
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	link, err := s.Uplink.Dial(ctx, Hello(session), take)
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		_ = link.Close(ctx) // most tests have closed or cut it
	})
	return link
}

func closeLink(t *testing.T, link gatepost.Link) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := link.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func send(t *testing.T, link gatepost.Link, rs []gatepost.Stored, replay bool) {
	t.Helper()
	if n, err := link.Send(t.Context(), rs, replay); n != len(rs) || err != nil {
		t.Errorf("Send confirmed %d of %d: %v", n, len(rs), err)
	}
}

func ids(rs []gatepost.Stored) []gatepost.ID {
	ids := make([]gatepost.ID, len(rs))
	for i, r := range rs {
		ids[i] = r.ID
	}
	return ids
}

// waitFor polls until what is so.
func waitFor(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !so() {
		select {
		case <-tick.C:
		case <-late:
			t.Errorf("waited %v for %s", patience, what)
			return
		}
	}
}
