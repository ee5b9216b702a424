package mqtt

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gatepost"
	"gatepost/uplink/uplinktest"
)

func TestBirthStateAndWill(t *testing.T) {
	broker := startMosquitto(t, "")
	p := startProxy(t, broker.addr())
	u := newUplink(t, "url: "+p.url())
	link := connect(t, u, "s1", nil)
	state := func() string { return retained(t, broker.url(), base+"state") }
	if got, want := state(), `{"v":1,"agent":"site-042","state":"online","session":"s1","version":"1.2.3","challenge":"challenge-of-s1"}`; got != want {
		t.Errorf("state\n got %s\nwant %s", got, want)
	}
	if got := retained(t, broker.url(), base+"register"); !strings.HasPrefix(got, `{"v":1,"agent":"site-042","version":"1.2.3","board":{"model":"Raspberry Pi 3"`) {
		t.Errorf("register %s", got)
	}
	b := uplinktest.Hello("s1").Birth
	b.Zone = "Europe/Rome"
	if err := link.Announce(t.Context(), b); err != nil {
		t.Error(err)
	}
	if got := retained(t, broker.url(), base+"register"); !strings.Contains(got, "Europe/Rome") {
		t.Errorf("register after Announce %s", got)
	}

	p.cut()
	waitFor(t, "the last will", func() bool {
		return state() == `{"v":1,"agent":"site-042","state":"offline","session":"s1","reason":"lost"}`
	})
	<-link.Done()

	link = connect(t, u, "s2", nil)
	if !strings.Contains(state(), `"online","session":"s2"`) {
		t.Errorf("state %s", state())
	}
	bye(t, link)
	if got, want := state(), `{"v":1,"agent":"site-042","state":"offline","session":"s2","reason":"stopped"}`; got != want {
		t.Errorf("state after Close\n got %s\nwant %s", got, want)
	}
}

// A link that Close cannot say goodbye over must end so that the broker says it.
func TestCloseThatIsNotHeardLeavesItToTheWill(t *testing.T) {
	broker := startMosquitto(t, "")
	p := startProxy(t, broker.addr())
	link := connect(t, newUplink(t, "url: "+p.url()), "s1", nil)
	p.hold(true)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := link.Close(ctx); err == nil {
		t.Error("Close said goodbye to nobody")
	}
	waitFor(t, "offline", func() bool { return strings.Contains(retained(t, broker.url(), base+"state"), "offline") })
}

func TestTopicsAndForms(t *testing.T) {
	broker := startMosquitto(t, "")
	backend := listen(t, broker.url(), base+"#")
	link := connect(t, newUplink(t, "url: "+broker.url()), "s1", nil)
	waitFor(t, "register", func() bool { return len(backend.on(base+"register")) == 1 })
	backend.forget()

	at := time.Date(2026, 11, 22, 1, 2, 3, 456_000_000, time.UTC)
	r := func(seq int64, d gatepost.DeviceID, k gatepost.Kind, data string) gatepost.Stored {
		return gatepost.Stored{ID: gatepost.NewID("x", k, fmt.Sprint(seq)), Log: "L", Seq: seq, Device: d, Kind: k, Received: at, Clock: "synced", Data: json.RawMessage(data)}
	}
	rs := []gatepost.Stored{
		r(1, "gate", gatepost.KindPunch, `{"user":"7","method":"face","direction":"in"}`),
		r(2, "gate", gatepost.KindResult, `{"id":"c1","command":"unlock","status":"done"}`),
		r(3, "", gatepost.KindResult, ` {} `),
		r(4, "", gatepost.KindEvent, `{"name":"started"}`),
	}
	for _, replay := range []bool{false, true} {
		if n, err := link.Send(t.Context(), rs, replay); n != 4 || err != nil {
			t.Fatal(n, err)
		}
	}
	punch := func(more string) string {
		return `{"v":1,"id":"` + rs[0].ID.String() + `","log":"L","seq":1,"agent":"site-042","device":"gate","kind":"punch","received":"2026-11-22T01:02:03.456Z","clock":"synced"` +
			more + `,"data":{"user":"7","method":"face","direction":"in"}}`
	}
	event := func(more string) string {
		return `{"v":1,"id":"` + rs[3].ID.String() + `","log":"L","seq":4,"agent":"site-042","kind":"event","received":"2026-11-22T01:02:03.456Z","clock":"synced"` +
			more + `,"data":{"name":"started"}}`
	}
	result := `{"v":1,"log":"L","seq":2,"received":"2026-11-22T01:02:03.456Z","id":"c1","command":"unlock","status":"done"}`
	empty := `{"v":1,"log":"L","seq":3,"received":"2026-11-22T01:02:03.456Z"}`
	const replay = `,"replay":true`
	want := []heard{
		{base + "devices/gate/punch", punch(""), false},
		{base + "devices/gate/result", result, false},
		{base + "result", empty, false},
		{base + "event", event(""), false},
		{base + "batch", "[" + punch(replay) + "]", false},
		{base + "devices/gate/result", result, false},
		{base + "result", empty, false},
		{base + "batch", "[" + event(replay) + "]", false},
	}
	waitFor(t, "all messages", func() bool { return len(backend.all()) >= len(want) })
	if d := cmp.Diff(want, backend.all(), cmp.AllowUnexported(heard{})); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestBatchesAreBoundedAndMayBeCompressed(t *testing.T) {
	broker := startMosquitto(t, "")
	backend := listen(t, broker.url(), base+"batch")
	link := connect(t, newUplink(t, "url: "+broker.url(), "batch_records: 7", "batch_bytes: 2000", "gzip: true"), "s1", nil)
	rs := uplinktest.Records(1, 100)
	if n, err := link.Send(t.Context(), rs, true); n != 100 || err != nil {
		t.Fatal(n, err)
	}
	seen := 0
	waitFor(t, "all records", func() bool {
		seen = 0
		for _, p := range backend.on(base + "batch") {
			z, err := gzip.NewReader(strings.NewReader(p))
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(z)
			if err != nil {
				t.Fatal(err)
			}
			n := bytes.Count(b, []byte(`"seq":`))
			if n > 7 || len(b) > 2000 || !json.Valid(b) {
				t.Fatalf("a batch of %d records, %d bytes: %s", n, len(b), b)
			}
			seen += n
		}
		return seen == 100
	})
}

func TestRecordsThatCanNeverPass(t *testing.T) {
	broker := startMosquitto(t, "")
	link := connect(t, newUplink(t, "url: "+broker.url(), "batch_bytes: 2000"), "s1", nil)
	for want, spoil := range map[string]func(*gatepost.Stored){
		`device id "a/b" does not fit into a topic`:                      func(r *gatepost.Stored) { r.Device = "a/b" },
		`device id "#" does not fit into a topic`:                        func(r *gatepost.Stored) { r.Device = "#" },
		`record kind "" does not fit into a topic`:                       func(r *gatepost.Stored) { r.Kind = "" },
		`the record's data is not JSON`:                                  func(r *gatepost.Stored) { r.Data = json.RawMessage(`{"user":`) },
		`the result is not a JSON object`:                                func(r *gatepost.Stored) { r.Kind, r.Data = gatepost.KindResult, json.RawMessage(`7`) },
		`the record has 2247 bytes, more than batch_bytes (2000) allows`: func(r *gatepost.Stored) { r.Data = json.RawMessage(`"` + strings.Repeat("x", 2000) + `"`) },
	} {
		for _, replay := range []bool{false, true} {
			rs := uplinktest.Records(1, 3)
			spoil(&rs[1])
			n, err := link.Send(t.Context(), rs, replay)
			if replay {
				want = strings.Replace(want, "2247", "2261", 1) // "replay":true
			}
			if n != 1 || gatepost.ClassOf(err) != gatepost.Permanent || err.Error() != want {
				t.Errorf("replay %v: confirmed %d, %v\nwant 1, %s", replay, n, err, want)
			}
		}
	}
}

func TestBrokerRestartsInMidSend(t *testing.T) {
	broker := startMosquitto(t, "max_queued_messages 0\n")
	backend := listen(t, broker.url(), base+"#")
	u := newUplink(t, "url: "+broker.url())
	link := connect(t, u, "s1", nil)
	rs := uplinktest.Records(1, 50_000)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for len(backend.all()) < 100 {
			<-time.After(time.Millisecond)
		}
		broker.stop()
	}()
	n, err := link.Send(t.Context(), rs, false)
	<-stopped
	if n == len(rs) || err == nil {
		t.Fatalf("confirmed %d, %v", n, err)
	}
	<-link.Done()
	t.Logf("%d confirmed: %v", n, err)
	bye(t, link)
	broker.start()
	// A broker that is killed loses what it had confirmed and not passed on, so only what is sent from here on is judged.
	waitFor(t, "the backend to be back", func() bool {
		connected(t, backend.Publish(base+"ready", 1, false, "ready"))
		return len(backend.on(base+"ready")) > 0
	})
	link = connect(t, u, "s2", nil)
	if m, err := link.Send(t.Context(), rs[n:n+1000], false); m != 1000 || err != nil {
		t.Fatal(m, err)
	}
	last := rs[n+999].ID.String()
	waitFor(t, "the last record", func() bool {
		got := backend.all()
		return len(got) > 0 && strings.Contains(got[len(got)-1].payload, last)
	})
}

func TestSilentBrokerIsGivenUp(t *testing.T) {
	broker := startMosquitto(t, "")
	p := startProxy(t, broker.addr())
	link := connect(t, newUplink(t, "url: "+p.url(), "timeout: 200ms"), "s1", nil)
	p.hold(true)
	n, err := link.Send(t.Context(), uplinktest.Records(1, 10), false)
	if n != 0 || err == nil || err.Error() != "the broker has confirmed nothing for 600ms" {
		t.Errorf("confirmed %d, %v", n, err)
	}
	select {
	case <-link.Done():
	default:
		t.Error("the link goes on")
	}
}

// A slow link must not make a live record wait for what the backlog has in flight.
func TestLivePassesABacklogOnASlowLink(t *testing.T) {
	broker := startMosquitto(t, "")
	p := startSlowProxy(t, broker.addr(), 30_000)
	link := connect(t, newUplink(t, "url: "+p.url()), "s1", nil)
	ctx, cancel := context.WithCancel(t.Context())
	drained := make(chan int)
	go func() {
		n, _ := link.Send(ctx, uplinktest.Records(1, 2000), true) // ends by cancel
		drained <- n
	}()
	backend := listen(t, broker.url(), base+"batch")
	waitFor(t, "the backlog to flow", func() bool { return len(backend.on(base+"batch")) > 5 })
	var worst time.Duration
	for i := range 10 {
		began := time.Now()
		if n, err := link.Send(t.Context(), uplinktest.Records(10_000+i, 1), false); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		worst = max(worst, time.Since(began))
	}
	cancel()
	t.Logf("%d records of the backlog passed; a live one took %v at worst", <-drained, worst)
	if worst > time.Second {
		t.Errorf("a live record took %v", worst)
	}
}

func TestLaneAdapts(t *testing.T) {
	l := newLane(10, true)
	// send fills the lane of a link that passes rate bytes per second, with a round trip of 10 ms.
	send := func(rate int) {
		n := l.room()
		flight, wait := l.enter(n)
		if wait != nil {
			t.Fatal("an empty lane is full")
		}
		l.leave(n, flight, 10*time.Millisecond+time.Duration(n)*time.Second/time.Duration(rate))
	}
	for range 10 {
		send(100_000_000)
	}
	if l.room() != budgetMost {
		t.Errorf("a fast link leaves the budget at %d", l.room())
	}
	for range 3 {
		send(100_000)
	}
	if room := l.room(); room < 15_000 || room > 30_000 {
		t.Errorf("100 KB/s leaves the budget at %d", room)
	}
	for range 3 {
		send(100)
	}
	if l.room() != budgetMin {
		t.Errorf("100 B/s leaves the budget at %d", l.room())
	}
	if _, wait := l.enter(1 << 20); wait != nil {
		t.Error("a large message finds no room in an empty lane")
	}
	_, wait := l.enter(1)
	if wait == nil {
		t.Fatal("a lane over its budget has room")
	}
	l.leave(1<<20, 0, 0)
	select {
	case <-wait:
	default:
		t.Error("room was freed and nobody was told")
	}
}

func TestCommands(t *testing.T) {
	broker := startMosquitto(t, "")
	backend := listen(t, broker.url())
	u := newUplink(t, "url: "+broker.url())
	got := make(chan gatepost.Delivery, 10)
	take := func(d gatepost.Delivery) { got <- d }
	next := func() gatepost.Delivery {
		t.Helper()
		select {
		case d := <-got:
			return d
		case <-time.After(patience):
			t.Fatal("no command came")
			panic("unreachable")
		}
	}
	link := connect(t, u, "s1", take)

	connected(t, backend.Publish(base+"devices/gate/command", 1, false,
		`{"id":"c1","command":"unlock","args":{"door":2,"seconds":3},"issued_at":"2026-11-22T01:02:03Z","ttl_s":7.5,"challenge":"ch"}`))
	d := next()
	want := gatepost.Command{ID: "c1", Device: "gate", Verb: "unlock", Args: json.RawMessage(`{"door":2,"seconds":3}`),
		Issued: time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC), TTL: 7500 * time.Millisecond, Challenge: "ch"}
	if diff := cmp.Diff(want, d.Command); diff != "" || d.Bad != nil {
		t.Errorf("%v -want +got\n%s", d.Bad, diff)
	}

	// Not done: the broker keeps it and gives it again.
	bye(t, link)
	link = connect(t, u, "s2", take)
	again := next()
	if again.Command.ID != "c1" {
		t.Errorf("%+v", again.Command)
	}
	again.Done()

	// Sent while away: the session keeps it.
	bye(t, link)
	connected(t, backend.Publish(base+"command", 1, false, `{"id":"c2","command":"ping"}`))
	link = connect(t, u, "s3", take)
	if d = next(); d.Command.ID != "c2" || d.Command.Device != "" || d.Command.Retained {
		t.Errorf("%+v", d.Command)
	}
	d.Done()

	// Retained: flagged. Its removal is no command.
	bye(t, link)
	connected(t, backend.Publish(base+"devices/gate/command", 1, true, `{"id":"c3","command":"unlock"}`))
	link = connect(t, u, "s4", take)
	for d = next(); !d.Command.Retained; d = next() { // it was also routed to the waiting session
		d.Done()
	}
	if d.Command.ID != "c3" {
		t.Errorf("%+v", d.Command)
	}
	d.Done()
	connected(t, backend.Publish(base+"devices/gate/command", 1, true, ""))

	connected(t, backend.Publish(base+"command", 1, false, `unlock!`))
	if d = next(); d.Bad == nil || d.Bad.Error() != "not JSON: invalid character 'u' looking for beginning of value at byte 1" {
		t.Errorf("%v", d.Bad)
	}
	d.Done()

	// Far too long: cut on arrival, refused, and the link goes on.
	connected(t, backend.Publish(base+"command", 1, false, `{"id":"big","command":"ping"}`+strings.Repeat(" ", 3<<20)))
	if d = next(); d.Bad == nil || d.Bad.Error() != "a command may have 65536 bytes, this one has more" {
		t.Errorf("%v", d.Bad)
	}
	d.Done()
	connected(t, backend.Publish(base+"command", 1, false, `{"id":"c4","command":"ping"}`))
	if d = next(); d.Command.ID != "c4" {
		t.Errorf("%+v", d.Command)
	}
	d.Done()

	// With commands off nothing comes, not even what waited.
	bye(t, link)
	connected(t, backend.Publish(base+"command", 1, false, `{"id":"c5","command":"ping"}`))
	connect(t, newUplink(t, "url: "+broker.url(), "allow_commands: false"), "s5", take)
	connected(t, backend.Publish(base+"command", 1, false, `{"id":"c6","command":"ping"}`))
	if len(got) > 0 {
		t.Errorf("allow_commands: false, and came %+v", <-got)
	}
}

// fight runs an uplink as the agent does: dial, wait for the end, say why, try again, until somebody must act.
func fight(t *testing.T, name string, u gatepost.Uplink, pause time.Duration) <-chan error {
	out := make(chan error, 1)
	go func() {
		for i := range 20 {
			link, err := u.Dial(t.Context(), uplinktest.Hello(fmt.Sprintf("%s-%d", name, i)), ignore)
			if err == nil {
				select {
				case <-link.Done():
				case <-t.Context().Done():
				}
				err = link.Err()
				bye(t, link)
			}
			t.Logf("%s-%d: %v", name, i, err)
			if gatepost.ClassOf(err) == gatepost.Misconfigured || t.Context().Err() != nil {
				out <- err
				return
			}
			<-time.After(pause)
		}
		out <- fmt.Errorf("%s fought on", name)
	}()
	return out
}

func TestTwoAgentsOfOneName(t *testing.T) {
	for name, second := range map[string]string{"one client id": "site-042", "two client ids": "other"} {
		t.Run(name, func(t *testing.T) {
			broker := startMosquitto(t, "")
			a, b := newUplink(t, "url: "+broker.url()), newUplink(t, "url: "+broker.url(), "client_id: "+second)
			first := fight(t, "a", a, 30*time.Millisecond)
			waitFor(t, "the first to be online", func() bool { return strings.Contains(retained(t, broker.url(), base+"state"), `"a-0"`) })
			other := fight(t, "b", b, 50*time.Millisecond)
			var loser gatepost.Uplink
			var err error
			select {
			case err = <-first:
				loser = a
			case err = <-other:
				loser = b
			case <-time.After(patience):
				t.Fatal("nobody noticed")
			}
			message := strings.TrimPrefix(err.Error(), broker.url()+": ") // which Dial puts in front, and Err does not
			fault{gatepost.ClassOf(err), message, gatepost.HintOf(err)}.mustBe(t, fault{gatepost.Misconfigured, "another agent is connected as site-042",
				"stop one of the two, or give it an agent.id of its own; a copied card keeps the old one"})

			// Where one holds the place, the other's next try finds that out without pushing it away.
			holder := connect(t, newUplink(t, "url: "+broker.url(), "client_id: "+second), "holder", nil)
			_, err = loser.Dial(t.Context(), uplinktest.Hello("again"), ignore)
			if err == nil || !strings.HasSuffix(err.Error(), "another agent is connected as site-042") || gatepost.ClassOf(err) != gatepost.Misconfigured {
				t.Errorf("second try: %v", err)
			}
			if err := holder.Err(); err != nil && name == "one client id" {
				t.Errorf("the holder was pushed away: %v", err)
			}
			// And once it is gone, the other gets in.
			bye(t, holder)
			connect(t, loser, "alone", nil)
		})
	}
}

func TestOwnHalfOpenConnectionIsNotAnotherAgent(t *testing.T) {
	broker := startMosquitto(t, "")
	u := newUplink(t, "url: "+broker.url())
	var links []gatepost.Link
	for i := range 6 { // each dial takes the place of the one before, whose end nobody noticed
		links = append(links, connect(t, u, fmt.Sprintf("s%d", i), nil))
	}
	last := links[len(links)-1]
	if n, err := last.Send(t.Context(), uplinktest.Records(1, 10), false); n != 10 || err != nil {
		t.Errorf("confirmed %d, %v", n, err)
	}
	if err := last.Err(); err != nil {
		t.Error(err)
	}
}

// A will of an earlier connection that comes late must not leave us offline.
func TestLateWillIsOverruled(t *testing.T) {
	broker := startMosquitto(t, "")
	backend := listen(t, broker.url())
	link := connect(t, newUplink(t, "url: "+broker.url()), "s1", nil)
	connected(t, backend.Publish(base+"state", 1, true, `{"v":1,"agent":"site-042","state":"offline","session":"s0","reason":"lost"}`))
	waitFor(t, "online again", func() bool {
		return strings.Contains(retained(t, broker.url(), base+"state"), `"online","session":"s1"`)
	})
	if err := link.Err(); err != nil {
		t.Error(err)
	}
}
