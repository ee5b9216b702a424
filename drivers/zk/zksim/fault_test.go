package zksim

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/drivers/zk/zkproto"
)

// spoil sets a fault or fails the test.
func spoil(t *testing.T, term *Terminal, f Fault) {
	t.Helper()
	if err := term.Fault(f); err != nil {
		t.Fatal(err)
	}
}

func TestFaultDrop(t *testing.T) {
	term, addr := start(t, Options{Records: 1000})
	c := connect(t, addr)
	spoil(t, term, Fault{Kind: "drop"})
	c.ended()

	c = connect(t, addr)
	c.ask(zkproto.CmdPrepareBuffer, wantLog)
	spoil(t, term, Fault{Kind: "drop", Bytes: 1234})
	c.send(zkproto.CmdReadBuffer, words(0, 40_004))
	if b, err := io.ReadAll(c.conn); len(b) != 1234 {
		t.Errorf("%d bytes before the end, want 1234 (%v)", len(b), err)
	}
	connect(t, addr) // once only
}

func TestFaultDelay(t *testing.T) {
	term, addr := start(t, Options{})
	c := connect(t, addr)
	spoil(t, term, Fault{Kind: "delay", Duration: 100 * time.Millisecond, Count: 1})
	began := time.Now()
	c.send(zkproto.CmdUnlock, words(30))
	waitFor(t, "the door", func() bool { return len(term.State().Doors) == 1 }) // done at once, answered late
	c.mustNext()
	if took := time.Since(began); took < 100*time.Millisecond {
		t.Errorf("answered after %v", took)
	}
	c.ask(zkproto.CmdGetTime, nil)
}

func TestFaultThrottle(t *testing.T) {
	term, addr := start(t, Options{Records: 500})
	c := connect(t, addr)
	c.ask(zkproto.CmdPrepareBuffer, wantLog)
	spoil(t, term, Fault{Kind: "throttle", Bytes: 100_000})
	began := time.Now()
	c.send(zkproto.CmdReadBuffer, words(0, 20_004))
	c.readStream()
	if took := time.Since(began); took < 150*time.Millisecond || took > 2*time.Second {
		t.Errorf("20 kB at 100 kB/s took %v", took)
	}
}

// writes counts what a terminal hands to its socket at once.
type writes struct {
	nopConn
	sizes []int
	all   []byte
}

func (w *writes) Write(b []byte) (int, error) {
	w.sizes = append(w.sizes, len(b))
	w.all = append(w.all, b...)
	return len(b), nil
}

func TestFaultSplit(t *testing.T) {
	term := New(Options{Records: 10, Inline: -1})
	spoil(t, term, Fault{Kind: "split", Bytes: 7})
	w := &writes{}
	s := &session{link: &link{t: term, conn: w, done: make(chan struct{})}, id: 1, welcome: true}
	if err := s.answer(request{}, okData([]byte("0123456789"))); err != nil {
		t.Fatal(err)
	}
	if len(w.sizes) != 4 || w.sizes[0] != 7 || w.sizes[3] != 26-21 {
		t.Errorf("a frame of 26 bytes went out as %v", w.sizes)
	}
	_, addr := start(t, Options{Records: 10}, func(real *Terminal) { spoil(t, real, Fault{Kind: "split", Bytes: 1}) })
	if c := connect(t, addr); len(c.readAll(wantLog)) != 404 {
		t.Error("split byte by byte, another log arrives")
	}
}

func TestFaultGlue(t *testing.T) {
	term := New(Options{Records: 10, Inline: -1, FrameMax: 100})
	spoil(t, term, Fault{Kind: "glue", Count: 3})
	w := &writes{}
	s := &session{link: &link{t: term, conn: w, done: make(chan struct{})}, id: 1, welcome: true}
	req := request{code: zkproto.CmdAttLogRead, session: 1}
	if err := s.answer(req, s.handle(req)); err != nil { // PrepareData, 5 Data, AckOK
		t.Fatal(err)
	}
	if want := []int{24 + 116 + 116, 116 + 116 + 20, 16}; !slices.Equal(w.sizes, want) {
		t.Errorf("7 frames went out as %v, want %v", w.sizes, want)
	}
}

func TestFaultGarble(t *testing.T) {
	term, addr := start(t, Options{})
	c := connect(t, addr)
	spoil(t, term, Fault{Kind: "garble"})
	c.send(zkproto.CmdGetTime, nil)
	if a := c.mustNext(); a.good {
		t.Error("the frame is whole")
	}
	c.ask(zkproto.CmdGetTime, nil)
	spoil(t, term, Fault{Kind: "garble", Bytes: 1})
	c.send(zkproto.CmdGetTime, nil)
	if _, err := c.next(); err == nil {
		t.Error("the magic is whole")
	}
}

func TestFaultChecksum(t *testing.T) {
	term, addr := start(t, Options{})
	c := connect(t, addr)
	spoil(t, term, Fault{Kind: "checksum", Count: 2})
	for _, good := range []bool{false, false, true} {
		c.send(zkproto.CmdGetTime, nil)
		if a := c.mustNext(); a.good != good || a.code != zkproto.AckOK {
			t.Errorf("checksum right: %v, want %v", a.good, good)
		}
	}
}

func TestFaultStall(t *testing.T) {
	term, addr := start(t, Options{Records: 1000})
	c := connect(t, addr)
	c.ask(zkproto.CmdPrepareBuffer, wantLog)
	spoil(t, term, Fault{Kind: "stall", Bytes: 5000})
	c.send(zkproto.CmdReadBuffer, words(0, 40_004))
	if _, err := io.ReadFull(c.conn, make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	c.silent(100 * time.Millisecond)
	c.conn.Close()

	waitFor(t, "the client to leave", func() bool { return term.State().Clients == 0 })
	c = connect(t, addr)
	c.ask(zkproto.CmdPrepareBuffer, wantLog)
	spoil(t, term, Fault{Kind: "stall", Bytes: 5000, Duration: 50 * time.Millisecond})
	c.send(zkproto.CmdReadBuffer, words(0, 40_004))
	if b := c.readStream(); !bytes.Equal(b.data[4:], term.log) {
		t.Error("after a pause another log arrives")
	}
}

func TestFaultRefuse(t *testing.T) {
	term, addr := start(t, Options{Records: 10})
	spoil(t, term, Fault{Kind: "refuse", Count: 2})
	turnedAway(t, addr)
	turnedAway(t, addr)
	c := connect(t, addr)
	spoil(t, term, Fault{Kind: "refuse", Code: zkproto.AckMode, Command: zkproto.CmdPrepareBuffer})
	if a := c.ask(zkproto.CmdPrepareBuffer, wantLog); a.code != zkproto.AckMode {
		t.Errorf("1503 is answered %d", a.code)
	}
	if a := c.ask(zkproto.CmdGetTime, nil); a.code != zkproto.AckOK {
		t.Errorf("GET_TIME is answered %d", a.code)
	}
	spoil(t, term, Fault{Kind: "refuse", Code: zkproto.AckError, Duration: time.Millisecond})
	waitFor(t, "the fault to end", func() bool { return c.ask(zkproto.CmdGetTime, nil).code == zkproto.AckOK })
}

func TestFaultReboot(t *testing.T) {
	term, addr := start(t, Options{})
	c := connect(t, addr)
	c.ask(zkproto.CmdDisable, nil)
	spoil(t, term, Fault{Kind: "reboot", Duration: 50 * time.Millisecond})
	c.ended()
	turnedAway(t, addr)
	waitFor(t, "the terminal to come back", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		d := &client{t: t, conn: conn}
		if _, err := conn.Write(message(zkproto.CmdConnect, 0, 0, nil)); err != nil {
			return false
		}
		a, err := d.next()
		return err == nil && a.field != c.session
	})
	if !term.State().Enabled {
		t.Error("disabled after a reboot")
	}
}

func TestFaultLog(t *testing.T) {
	term, _ := start(t, Options{Users: 4, Records: 10, Now: at("2026-03-01 08:00:00")})
	before := term.Log(0, 10)
	spoil(t, term, Fault{Kind: "wrap", Count: 3})
	after := term.Log(0, 20)
	if len(after) != 10 || after[0] != before[3] || after[9].Time != "2026-03-01T08:00:00" {
		t.Errorf("wrapped: %v", after)
	}
	spoil(t, term, Fault{Kind: "rewrite"})
	rewritten := term.Log(0, 20)
	if len(rewritten) != 10 || rewritten[5] == before[5] {
		t.Errorf("rewritten: %v", rewritten)
	}
	spoil(t, term, Fault{Kind: "impossible"})
	if e := term.Log(10, 1); len(e) != 1 || e[0].Time != "2026-02-30T10:00:00" {
		t.Errorf("impossible: %v", e)
	}
	spoil(t, term, Fault{Kind: "clear"})
	if n := term.State().Records; n != 0 {
		t.Errorf("cleared: %d records", n)
	}
}

func TestFaultClock(t *testing.T) {
	term, _ := start(t, Options{Now: at("2026-03-01 08:00:00")})
	spoil(t, term, Fault{Kind: "clock", Duration: -36 * time.Hour})
	if c := term.State().Clock; c != "2026-02-27T20:00:00" {
		t.Errorf("clock %s", c)
	}
}

func TestFaultSilent(t *testing.T) {
	term, addr := start(t, Options{})
	c := connect(t, addr)
	spoil(t, term, Fault{Kind: "silent", Count: 1})
	c.send(zkproto.CmdUnlock, words(30))
	c.silent(50 * time.Millisecond)
	if n := len(term.State().Doors); n != 0 {
		t.Errorf("a silent terminal opened %d doors", n)
	}
	c.ask(zkproto.CmdGetTime, nil)
}

func TestFaultForeign(t *testing.T) {
	term, addr := start(t, Options{})
	c := connect(t, addr)
	spoil(t, term, Fault{Kind: "foreign", Count: 1})
	c.send(zkproto.CmdGetTime, nil)
	if a := c.mustNext(); a.field == c.session || a.reply == c.reply-1 {
		t.Errorf("first came %+v", a)
	}
	if a := c.mustNext(); a.reply != c.reply-2 {
		t.Errorf("second came %+v", a)
	}
	if a := c.mustNext(); a.reply != c.reply-1 || len(a.data) != 4 {
		t.Errorf("last came %+v", a)
	}
}

func TestFaultCounts(t *testing.T) {
	term, addr := start(t, Options{Records: 10})
	c := connect(t, addr)
	spoil(t, term, Fault{Kind: "miscount", Count: -3})
	spoil(t, term, Fault{Kind: "prefix", Count: 8})
	if n := le.Uint32(c.ask(zkproto.CmdGetFreeSizes, nil).data[32:]); n != 7 {
		t.Errorf("sizes say %d records, want 7", n)
	}
	if log := c.readAll(wantLog); le.Uint32(log) != 408 || len(log) != 404 {
		t.Errorf("log of %d bytes says %d", len(log), le.Uint32(log))
	}
	spoil(t, term, Fault{Kind: "none"})
	if log := c.readAll(wantLog); le.Uint32(log) != 400 {
		t.Errorf("after none the log says %d", le.Uint32(log))
	}
}

func TestFaultChecked(t *testing.T) {
	term := New(Options{})
	for want, f := range map[string]Fault{
		`fault "delay" needs duration`:                                {Kind: "delay"},
		`fault "glue" takes no bytes`:                                 {Kind: "glue", Count: 2, Bytes: 1},
		`fault "wrap": count is negative`:                             {Kind: "wrap", Count: -1},
		`fault "refuse": a code is beyond 65535`:                      {Kind: "refuse", Code: 65536},
		`fault "refuse" with a command needs a code`:                  {Kind: "refuse", Command: 31},
		`fault "impossible": count is beyond 1000000`:                 {Kind: "impossible", Count: 1_000_001},
		"fault \"split\" needs bytes\nfault \"split\" takes no count": {Kind: "split", Count: 1},
	} {
		if err := term.Fault(f); err == nil || err.Error() != want {
			t.Errorf("%+v: %v, want %s", f, err, want)
		}
	}
	if err := term.Fault(Fault{Kind: "dorp"}); err == nil || !strings.HasPrefix(err.Error(), `fault "dorp": want one of checksum, clear, clock,`) {
		t.Errorf("unknown kind: %v", err)
	}
}

func TestControl(t *testing.T) {
	term := New(Options{Users: 20, Records: 500, Zone: time.UTC, Now: at("2026-03-01 08:00:00")})
	srv := httptest.NewServer(term.Control())
	defer srv.Close()
	post := func(path, body string) (int, string) {
		r, err := http.Post(srv.URL+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return r.StatusCode, strings.TrimSpace(string(b))
	}
	for _, v := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"/punch", `{"user":"7"}`, 200, `{"records":501}`},
		{"/punch", `{"user":"0012","time":"2026-02-31T10:00:00","method":"card","direction":"break_out","count":2}`, 200, `{"records":503}`},
		{"/punch", `{}`, 400, `{"error":"user \"\": want 1 to 24 bytes of text"}`},
		{"/punch", `{"user":"7","time":"noon"}`, 400, `{"error":"time \"noon\" is not like 2006-01-02T15:04:05 within 2000 to 2099"}`},
		{"/punch", `{"user":"7","method":"nose"}`, 400, `{"error":"method \"nose\": want finger, face, card, pin, palm, qr or other"}`},
		{"/punch", `{"user":"7","direction":"up"}`, 400, `{"error":"direction \"up\": want in, out, break_out, break_in, overtime_in, overtime_out or none"}`},
		{"/punch", `{"usr":"7"}`, 400, `{"error":"body: json: unknown field \"usr\""}`},
		{"/punch", `7`, 400, ``},
		{"/fault", `{"kind":"clock","duration":"-1h"}`, 200, `{}`},
		{"/fault", `{"kind":"delay","duration":"soon"}`, 400, `{"error":"duration \"soon\" is not like 1m30s"}`},
		{"/event", `{"bit":512,"data":"37000000"}`, 200, `{}`},
		{"/event", `{"bit":3}`, 400, `{"error":"event 3: want one bit"}`},
		{"/event", `{"bit":1,"data":"7"}`, 400, `{"error":"encoding/hex: odd length hex string"}`},
		{"/fault", `{"kind":"delay"}`, 400, `{"error":"fault \"delay\" needs duration"}`},
	} {
		if status, got := post(v.path, v.body); status != v.status || v.want != "" && got != v.want {
			t.Errorf("%s %s: %d %s, want %d %s", v.path, v.body, status, got, v.status, v.want)
		}
	}
	last := term.Log(502, 1)
	if want := (Entry{0, "0012", "2026-02-31T10:00:00", zkproto.VerifyCardTFT, zkproto.StateBreakOut}); len(last) != 1 || last[0] != want {
		t.Errorf("record %+v, want %+v", last, want)
	}
	get := func(path string) string {
		r, err := http.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return strings.TrimSpace(string(b))
	}
	want := `{"serial":"GP00000001","users":20,"records":503,"clock":"2026-03-01T07:00:00","enabled":true,"doors":[],"clients":0,"unacked":0,"requests":0}`
	if got := get("/state"); got != want {
		t.Errorf("state %s\nwant  %s", got, want)
	}
	var entries []Entry
	if err := json.Unmarshal([]byte(get("/log?from=500&count=1")), &entries); err != nil || len(entries) != 1 || entries[0].User != "7" || entries[0].UID != 7 {
		t.Errorf("log: %v, %+v", err, entries)
	}
	if got := get("/log?count=x"); got != `{"error":"count \"x\": want a number from 0 to 10000"}` {
		t.Errorf("log with a bad count: %s", got)
	}
	var users []User
	if err := json.Unmarshal([]byte(get("/users")), &users); err != nil || len(users) != 20 {
		t.Errorf("users: %v, %d", err, len(users))
	}
}

func TestPunchOnNumericTerminal(t *testing.T) {
	term := New(Options{RecordSize: 16})
	for _, bad := range []string{"0012", "ab", "4294967296"} {
		if err := term.Punch(Punch{User: bad}); err == nil || !strings.Contains(err.Error(), "plain numbers only") {
			t.Errorf("user %q: %v", bad, err)
		}
	}
	if err := term.Punch(Punch{User: "12", Method: "pin", Direction: "out"}); err != nil {
		t.Fatal(err)
	}
	if e := term.Log(0, 1)[0]; e.User != "12" || e.Verify != zkproto.VerifyPassword || e.State != 1 {
		t.Errorf("record %+v", e)
	}
	if err := term.Punch(Punch{User: "12", Count: -1}); err == nil || errors.Is(err, ErrDisabled) {
		t.Errorf("a negative count: %v", err)
	}
}

// nopConn is a connection that goes nowhere.
type nopConn struct{ net.Conn }

func (nopConn) SetWriteDeadline(time.Time) error { return nil }
func (nopConn) Close() error                     { return nil }

// TestHostileClient: what is no frame ends the connection, and the next client is served.
func TestHostileClient(t *testing.T) {
	_, addr := start(t, Options{})
	for name, b := range map[string]string{
		"other protocol": "GET / HTTP/1.1\r\n\r\n",
		"huge":           "\x50\x50\x82\x7d\xff\xff\xff\x7f",
		"no header":      "\x50\x50\x82\x7d\x07\x00\x00\x00",
	} {
		c := dial(t, addr)
		c.write([]byte(b))
		t.Log(name)
		c.ended()
	}
	half := dial(t, addr)
	half.write(message(zkproto.CmdConnect, 0, 0, nil)[:11])
	half.conn.Close()
	connect(t, addr)
}
