package zksim

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"gatepost/drivers/zk/zkproto"
)

// start runs a terminal on a loopback socket for the length of the test.
func start(t *testing.T, o Options, prepare ...func(*Terminal)) (*Terminal, string) {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	if o.Zone == nil {
		o.Zone = time.UTC
	}
	term := New(o)
	for _, f := range prepare {
		f(term)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- term.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Serve does not end")
		}
	})
	return term, l.Addr().String()
}

// client speaks in raw frames; what it knows of the protocol it has from the sheet, not from the code under test.
type client struct {
	t       *testing.T
	conn    net.Conn
	session uint16
	reply   uint16
}

func dial(t *testing.T, addr string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return &client{t: t, conn: conn}
}

// turnedAway fails the test unless a new connection is reset, which the caller may see already while it connects.
func turnedAway(t *testing.T, addr string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	(&client{t: t, conn: conn}).ended()
}

// connect is dial and CONNECT.
func connect(t *testing.T, addr string) *client {
	t.Helper()
	c := dial(t, addr)
	got := c.ask(zkproto.CmdConnect, nil)
	if got.code != zkproto.AckOK {
		t.Fatalf("CONNECT answered %d", got.code)
	}
	c.session = got.field
	return c
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "|", "").Replace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (c *client) write(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// want reads exactly the bytes given in hex.
func (c *client) want(s string) {
	c.t.Helper()
	want := unhex(c.t, s)
	got := make([]byte, len(want))
	n, err := io.ReadFull(c.conn, got)
	if err != nil || !bytes.Equal(got, want) {
		c.t.Fatalf("got  %x (%v)\nwant %x", got[:n], err, want)
	}
}

// slowSum is the sheet's recipe, word by word.
func slowSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])
		if i+1 < len(b) {
			sum += uint32(b[i+1]) << 8
		}
		for sum > 0xffff {
			sum = sum&0xffff + sum>>16
		}
	}
	return uint16(sum)
}

// message is a frame a client sends.
func message(code, session, reply uint16, data []byte) []byte {
	p := make([]byte, 16, 16+len(data))
	copy(p, "\x50\x50\x82\x7d")
	binary.LittleEndian.PutUint32(p[4:], uint32(8+len(data)))
	binary.LittleEndian.PutUint16(p[8:], code)
	binary.LittleEndian.PutUint16(p[12:], session)
	binary.LittleEndian.PutUint16(p[14:], reply)
	p = append(p, data...)
	binary.LittleEndian.PutUint16(p[10:], ^slowSum(p[8:]))
	return p
}

// answered is a frame a client got.
type answered struct {
	code, field, reply uint16
	data               []byte
	good               bool // its checksum was right
}

func (c *client) next() (answered, error) {
	var head [8]byte
	if _, err := io.ReadFull(c.conn, head[:]); err != nil {
		return answered{}, err
	}
	if string(head[:4]) != "\x50\x50\x82\x7d" {
		return answered{}, errors.New("bad magic")
	}
	p := make([]byte, binary.LittleEndian.Uint32(head[4:]))
	if _, err := io.ReadFull(c.conn, p); err != nil {
		return answered{}, err
	}
	u := binary.LittleEndian.Uint16
	return answered{u(p), u(p[4:]), u(p[6:]), p[8:], slowSum(p) == 0xffff}, nil
}

func (c *client) mustNext() answered {
	c.t.Helper()
	a, err := c.next()
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

func (c *client) send(code uint16, data []byte) {
	c.t.Helper()
	c.write(message(code, c.session, c.reply, data))
	c.reply++
}

func (c *client) ask(code uint16, data []byte) answered {
	c.t.Helper()
	c.send(code, data)
	a := c.mustNext()
	if !a.good || a.reply != c.reply-1 {
		c.t.Fatalf("answer to %d: checksum %v, reply %d, want %d", code, a.good, a.reply, c.reply-1)
	}
	return a
}

// silent fails the test if anything arrives within d.
func (c *client) silent(d time.Duration) {
	c.t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(d))
	var b [1]byte
	if n, err := c.conn.Read(b[:]); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("read %d bytes, %v; want silence", n, err)
	}
	c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
}

// ended fails the test unless the connection is closed by now or soon.
func (c *client) ended() {
	c.t.Helper()
	if _, err := io.Copy(io.Discard, c.conn); errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatal("the connection stays open")
	}
}

// bulk is what readStream saw.
type bulk struct {
	data   []byte
	frames int
	last   uint16 // field of the AckOK
}

// readStream reads PrepareData, Data, AckOK.
func (c *client) readStream() bulk {
	c.t.Helper()
	head := c.mustNext()
	if head.code != zkproto.CmdPrepareData {
		c.t.Fatalf("bulk answer starts with %d", head.code)
	}
	size := int(binary.LittleEndian.Uint32(head.data))
	var b bulk
	for {
		f := c.mustNext()
		if !f.good || f.reply != head.reply {
			c.t.Fatalf("frame %d: checksum %v, reply %d", b.frames, f.good, f.reply)
		}
		if f.code == zkproto.AckOK {
			b.last = f.field
			break
		}
		if f.code != zkproto.CmdData || int(f.field) != b.frames {
			c.t.Fatalf("frame %d: code %d, field %d", b.frames, f.code, f.field)
		}
		b.frames++
		b.data = append(b.data, f.data...)
	}
	if len(b.data) != size {
		c.t.Fatalf("%d bytes announced, %d came", size, len(b.data))
	}
	return b
}

var (
	wantLog   = []byte{1, 13, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	wantUsers = []byte{1, 9, 0, 5, 0, 0, 0, 0, 0, 0, 0}
)

// readAll reads a whole data set as a client of today does.
func (c *client) readAll(what []byte) []byte {
	c.t.Helper()
	a := c.ask(zkproto.CmdPrepareBuffer, what)
	if a.code == zkproto.CmdData {
		return a.data
	}
	if a.code != zkproto.AckOK || len(a.data) != 13 {
		c.t.Fatalf("1503 answered %d with %d bytes", a.code, len(a.data))
	}
	size := binary.LittleEndian.Uint32(a.data[1:])
	var all []byte
	for at := uint32(0); at < size; at += zkproto.MaxChunk {
		c.send(zkproto.CmdReadBuffer, words(at, min(zkproto.MaxChunk, size-at)))
		all = append(all, c.readStream().data...)
	}
	if a := c.ask(zkproto.CmdFreeData, nil); a.code != zkproto.AckOK {
		c.t.Fatalf("FREE_DATA answered %d", a.code)
	}
	return all
}

func words(v ...uint32) []byte {
	var b []byte
	for _, w := range v {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

// waitFor polls until ok, as nothing tells when the other side of a socket has noticed.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(5 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func at(s string) func() time.Time {
	v, err := time.Parse(time.DateTime, s)
	if err != nil {
		panic(err)
	}
	return func() time.Time { return v }
}

// TestRecordedConversation sends the bytes of the sheet's vectors and wants the terminal's side of them, bit by bit.
func TestRecordedConversation(t *testing.T) {
	term, addr := start(t, Options{Users: 50, Now: at("2026-02-28 23:59:58")}, func(term *Terminal) { term.next = 0xfb2e })
	c := dial(t, addr)
	for _, v := range []struct{ name, send, want string }{
		{"CONNECT", "5050827d08000000e80317fc00000000", "5050827d08000000d007fffc2ffb0000"},
		{"SDKBuild", "5050827d130000000c00057f2ffb010053444b4275696c643d3100", "5050827d08000000d007fefc2ffb0100"},
		{"DISABLE", "5050827d08000000eb03e3002ffb0200", "5050827d08000000d007fdfc2ffb0200"},
		{"GET_TIME", "5050827d08000000c90004042ffb0300", "5050827d0c000000d00761d62ffb03007ef41c32"},
		{"SET_TIME", "5050827d0c000000ca0066dd2ffb04007ef41c32", "5050827d08000000d007fbfc2ffb0400"},
		{"serial", "5050827d160000000b00bcbb2ffb05007e53657269616c4e756d62657200",
			"5050827d21000000d007ef642ffb05007e53657269616c4e756d6265723d4750303030303030303100"},
		{"UNLOCK 50", "5050827d0c0000001f0078042ffb070032000000", "5050827d08000000d007f8fc2ffb0700"},
		{"DOORSTATE", "5050827d080000004b007d042ffb0800", "5050827d09000000d007f6fc2ffb080001"},
		{"REG_EVENT", "5050827d0c000000f401d2022ffb090001000000", "5050827d08000000d007f6fc2ffb0900"},
		{"ENABLE", "5050827d08000000ea03dc002ffb0a00", "5050827d08000000d007f5fc2ffb0a00"},
		{"PINWIDTH", "5050827d0a000000450058b42ffb12002050", "5050827d09000000d007e4fc2ffb120009"},
		{"REFRESHDATA", "5050827d08000000f503cd002ffb0e00", "5050827d08000000d007f1fc2ffb0e00"},
		{"REFRESHOPTION", "5050827d08000000f603cb002ffb0f00", "5050827d08000000d007f0fc2ffb0f00"},
		{"VERSION", "5050827d080000004c046f002ffb1500",
			"5050827d1d000000d00769ad2ffb150056657220362e363020417072203238203230313500"},
		{"no such option", string(hexOf(message(11, 0xfb2f, 6, []byte("Nothing\x00")))), "5050827d08000000d107f8fc2ffb0600"},
		{"CLEAR_ATTLOG", "5050827d080000000f00af042ffb1200", "5050827d08000000d007edfc2ffb1200"},
		{"last reply number", "5050827d08000000c90008042ffbfeff", string(hexOf(message(2000, 0xfb2f, 65534, unhex(t, "7ef41c32"))))},
	} {
		t.Log(v.name)
		c.write(unhex(t, v.send))
		c.want(v.want)
	}
	if err := term.Punch(Punch{User: "42"}); err != nil {
		t.Fatal(err)
	}
	c.want("5050827d28000000f40164780100000034320000000000000000000000000000000000000000000001001a021c173b3a")
	if n := term.State().Unacked; n != 1 {
		t.Errorf("%d events unconfirmed, want 1", n)
	}
	c.write(unhex(t, "5050827d08000000d007fffc2ffb0000"))
	waitFor(t, "the confirmation", func() bool { return term.State().Unacked == 0 })
	c.write(unhex(t, "5050827d08000000ed03d2002ffb1100"))
	c.want("5050827d08000000d007eefc2ffb1100")
	c.ended()
}

func hexOf(b []byte) []byte { return []byte(hex.EncodeToString(b)) }

// TestEventLengths compares each length of an attendance event with the sheet.
func TestEventLengths(t *testing.T) {
	for size, want := range map[int]string{
		10: "5050827d12000000f4016eaa010000002a0001001a021c173b3a",
		12: "5050827d14000000f4016eaa010000002a00000001001a021c173b3a",
		14: "5050827d16000000f4016eaa010000002a0001001a021c173b3a00000000",
		32: "5050827d28000000f40164780100000034320000000000000000000000000000000000000000000001001a021c173b3a",
		36: "5050827d2c000000f40164780100000034320000000000000000000000000000000000000000000001001a021c173b3a00000000",
		37: "5050827d2d000000f40164780100000034320000000000000000000000000000000000000000000001001a021c173b3a0000000000",
		52: "5050827d3c000000f40164780100000034320000000000000000000000000000000000000000000001001a021c173b3a" + strings.Repeat("00", 20),
	} {
		e := entry{uid: 42, id: "42", time: civil{2026, 2, 28, 23, 59, 58}, verify: 1}
		got := appendFrame(nil, zkproto.CmdRegEvent, zkproto.EventAttLog, 0, func(b []byte) []byte { return e.appendEvent(b, size) })
		if hex.EncodeToString(got) != want {
			t.Errorf("%d bytes:\ngot  %x\nwant %s", size, got, want)
		}
	}
}

func TestCommKeyVectors(t *testing.T) {
	for _, v := range []struct {
		key     uint32
		session uint16
		ticks   byte
		want    string
	}{
		{0, 0, 50, "617d3279"}, {0, 0x03e8, 50, "617d327a"}, {12, 0x45cf, 50, "614d323c"}, {45, 0x45cf, 50, "61c9323c"},
		{1, 1, 50, "61fd3279"}, {123456, 0x1234, 50, "267f32eb"}, {123456, 0x1234, 51, "277e33ea"}, {8697, 0xfb2f, 50, "e5e23282"},
		{999999, 0xffff, 50, "22813296"}, {88888888, 0x8df3, 50, "0b6132b9"}, {1, 0xc0c5, 0, "53cf008b"},
		{4294967295, 0, 50, "9e823286"}, {0x7fffffff, 0x3c5c, 50, "617d3245"},
	} {
		if got := proof(v.key, v.session, v.ticks); hex.EncodeToString(got[:]) != v.want {
			t.Errorf("key %d session %#x ticks %d: %x, want %s", v.key, v.session, v.ticks, got, v.want)
		}
	}
}

func TestPackedTime(t *testing.T) {
	for u, want := range map[uint32]civil{
		0: {2000, 1, 1, 0, 0, 0}, 1: {2000, 1, 1, 0, 0, 1}, 0x234f15ec: {2018, 6, 6, 7, 31, 56}, 0x2e48c140: {2024, 2, 29, 12, 0, 0},
		0x321cf47e: {2026, 2, 28, 23, 59, 58}, 0xbf92f7ff: {2099, 12, 31, 23, 59, 59}, 0x321cf480: {2026, 2, 29, 0, 0, 0},
		0x32715480: {2026, 4, 31, 0, 0, 0},
	} {
		if got := unpack(u); got != want {
			t.Errorf("%#x is %v, want %v", u, got, want)
		}
		if got := want.pack(); got != u {
			t.Errorf("%v packs to %#x, want %#x", want, got, u)
		}
	}
	if got, want := unpack(0xffffffff), (civil{2133, 8, 18, 6, 28, 15}); got != want {
		t.Errorf("erased flash is %v, want %v", got, want)
	}
}

// TestRecordVectors encodes the sheet's example records.
func TestRecordVectors(t *testing.T) {
	e := entry{uid: 13, id: "999111333", verify: 1, time: civil{2018, 6, 25, 17, 50, 35}}
	want := "0d00393939313131333333000000000000000000000000000000016bb368230000000000ff000000"
	if got := hex.EncodeToString(e.append(nil, 40)); got != want {
		t.Errorf("40 bytes:\ngot  %s\nwant %s", got, want)
	}
	want += "ff3235350000000000"
	if got := hex.EncodeToString(e.append(nil, 49)); got != want {
		t.Errorf("49 bytes:\ngot  %s\nwant %s", got, want)
	}
	e = entry{id: "22", state: 1, time: civil{2018, 6, 6, 15, 15, 17}}
	if got, want := hex.EncodeToString(e.append(nil, 16)), "1600000085824f230100000000000000"; got != want {
		t.Errorf("16 bytes:\ngot  %s\nwant %s", got, want)
	}
}

func TestUserVectors(t *testing.T) {
	// The second user of the recorded download V11.
	u := user{uid: 2, name: "rmengano", id: "222222cb"}
	want := "0200000000000000000000726d656e67616e6f000000000000000000000000000000000000000000000000000000000032323232323263620000000000000000" + strings.Repeat("00", 8)
	if got := hex.EncodeToString(u.append(nil, 72)); got != want {
		t.Errorf("72 bytes:\ngot  %s\nwant %s", got, want)
	}
	// The computed 28-byte write, but for its time zone byte: uid 14, privilege 6, card 6543, group 1, id 11224488.
	u = user{uid: 14, priv: 6, password: "12345", name: "Nuevo", card: 6543, group: 1, id: "11224488"}
	if got, want := hex.EncodeToString(u.append(nil, 28)), "0e000631323334354e7565766f0000008f19000000010000a845ab00"; got != want {
		t.Errorf("28 bytes:\ngot  %s\nwant %s", got, want)
	}
	for _, size := range []int{28, 72} {
		if got, good := parseUser(u.append(nil, size)); !good || got != u {
			t.Errorf("%d bytes: read back %+v, want %+v", size, got, u)
		}
	}
	if got := clip("Chloé", 5); got != "Chlo" {
		t.Errorf("clip cut a character: %q", got)
	}
}

// TestMultiFrameRecipe streams the sheet's synthetic data set and compares the frames it names.
func TestMultiFrameRecipe(t *testing.T) {
	_, addr := start(t, Options{Inline: -1, FrameMax: 1008, UserSize: 72}, func(term *Terminal) {
		term.next = 0xfb2e
		body := make([]byte, 2028)
		for i := range body {
			body[i] = byte(7*i + 3)
		}
		term.log = body
	})
	c := dial(t, addr)
	c.write(unhex(t, "5050827d08000000e80317fc00000000"))
	c.want("5050827d08000000d007fffc2ffb0000")
	c.write(message(1503, 0xfb2f, 19, wantLog))
	if a := c.mustNext(); a.code != 2000 || binary.LittleEndian.Uint32(a.data[1:]) != 2032 {
		t.Fatalf("1503 answered %+v", a)
	}
	c.write(message(1504, 0xfb2f, 20, words(0, 2032)))
	c.want("5050827d10000000dc05fff22ffb1400f0070000f0030000")
	for seq, sum := range []string{"475a", "d0f2"} {
		var head [16]byte
		if _, err := io.ReadFull(c.conn, head[:]); err != nil {
			t.Fatal(err)
		}
		if want := "5050827df8030000dd05" + sum + hex.EncodeToString([]byte{byte(seq), 0}) + "1400"; hex.EncodeToString(head[:]) != want {
			t.Errorf("frame %d: %x, want %s", seq, head, want)
		}
		if _, err := io.CopyN(io.Discard, c.conn, 1008); err != nil {
			t.Fatal(err)
		}
	}
	c.want("5050827d18000000dd054b0002001400070e151c232a31383f464d545b626970")
	c.want("5050827d08000000d00719f802001400")
}

func TestCommKey(t *testing.T) {
	_, addr := start(t, Options{Key: 12}, func(term *Terminal) { term.next = 0x45ce })
	c := dial(t, addr)
	c.write(message(zkproto.CmdGetTime, 0, 0, nil)) // before CONNECT
	if a := c.mustNext(); a.code != zkproto.AckUnauth {
		t.Errorf("a request before CONNECT is answered %d", a.code)
	}
	c.write(unhex(t, "5050827d08000000e80317fc00000000"))
	c.want("5050827d08000000d5075bb2cf450000")
	c.write(message(zkproto.CmdUnlock, 0x45cf, 1, words(50)))
	if a := c.mustNext(); a.code != zkproto.AckUnauth {
		t.Errorf("UNLOCK before AUTH is answered %d", a.code)
	}
	c.write(unhex(t, "5050827d0c0000004e044db0cf45010061c9323c")) // key 45
	c.want("5050827d08000000d5075ab2cf450100")
	c.write(unhex(t, "5050827d0c0000004e044e2ccf450100614d323c")) // key 12
	c.want("5050827d08000000d0075fb2cf450100")
	c.write(unhex(t, "5050827d08000000e80317fc00000000")) // again: keeps the session
	c.want(string(hexOf(message(2000, 0x45cf, 0, nil))))
	c.write(unhex(t, "5050827d080000003200fcb9cf450200")) // GET_FREE_SIZES
	if a := c.mustNext(); a.code != 2000 || len(a.data) != 92 {
		t.Errorf("free sizes: %d, %d bytes", a.code, len(a.data))
	}
	c.write(message(zkproto.CmdExit, 0x45cf, 3, nil))
	if a := c.mustNext(); a.code != zkproto.AckOK {
		t.Errorf("EXIT is answered %d", a.code)
	}
	c.ended()
}

func TestBadChecksumMeetsSilence(t *testing.T) {
	_, addr := start(t, Options{})
	c := connect(t, addr)
	m := message(zkproto.CmdGetTime, c.session, 1, nil)
	m[10]++
	c.write(m)
	c.silent(100 * time.Millisecond)
	if a := c.ask(zkproto.CmdGetTime, nil); a.code != zkproto.AckOK {
		t.Errorf("then GET_TIME is answered %d", a.code)
	}
	_, addr = start(t, Options{AnyChecksum: true})
	c = connect(t, addr)
	c.write(m)
	if a := c.mustNext(); a.code != zkproto.AckUnauth && a.code != zkproto.AckOK {
		t.Errorf("with AnyChecksum the answer is %d", a.code)
	}
}

// TestBulk reads users and log in every shape a terminal may give them.
func TestBulk(t *testing.T) {
	for _, v := range []struct {
		name string
		o    Options
	}{
		{"inline", Options{Users: 3, Records: 20}},
		{"large", Options{Users: 300, Records: 5000}},
		{"small frames", Options{Users: 300, Records: 5000, FrameMax: 1008}},
		{"old sizes", Options{Users: 300, Records: 5000, UserSize: 28, RecordSize: 16, FrameMax: 65528}},
		{"49 bytes", Options{Users: 300, Records: 5000, RecordSize: 49}},
		{"odd ids", Options{Users: 300, Records: 500, OddIDs: true}},
		{"empty", Options{}},
		{"empty, never inline", Options{Inline: -1}},
	} {
		t.Run(v.name, func(t *testing.T) {
			term, addr := start(t, v.o)
			c := connect(t, addr)
			sizes := c.ask(zkproto.CmdGetFreeSizes, nil).data
			if n := binary.LittleEndian.Uint32(sizes[16:]); int(n) != v.o.Users {
				t.Errorf("sizes say %d users", n)
			}
			if n := binary.LittleEndian.Uint32(sizes[32:]); int(n) != v.o.Records {
				t.Errorf("sizes say %d records", n)
			}
			log := c.readAll(wantLog)
			if n := binary.LittleEndian.Uint32(log); int(n) != len(log)-4 || len(log)-4 != v.o.Records*term.o.RecordSize {
				t.Errorf("log of %d bytes says %d", len(log), n)
			}
			if !bytes.Equal(log[4:], term.log) {
				t.Error("another log than the terminal's")
			}
			users := c.readAll(wantUsers)
			if len(users)-4 != v.o.Users*term.o.UserSize {
				t.Errorf("users of %d bytes", len(users))
			}
			for i, want := range term.Users() {
				b := users[4+i*term.o.UserSize:][:term.o.UserSize]
				if u, good := parseUser(b); !good || u.id != want.User || u.name != want.Name || u.card != want.Card || u.password != want.Password {
					t.Fatalf("user %d: %+v, want %+v", i, u, want)
				}
			}
			entries := term.Log(0, v.o.Records)
			for i := 1; i < len(entries); i++ {
				if entries[i].Time <= entries[i-1].Time {
					t.Fatalf("record %d at %s after %s", i, entries[i].Time, entries[i-1].Time)
				}
			}
		})
	}
}

func TestOldFirmwareStreams(t *testing.T) {
	term, addr := start(t, Options{Users: 3, Records: 50, Bulk: "direct"})
	c := connect(t, addr)
	if a := c.ask(zkproto.CmdPrepareBuffer, wantLog); a.code != zkproto.AckUnknown {
		t.Errorf("1503 is answered %d", a.code)
	}
	c.send(zkproto.CmdAttLogRead, nil)
	if b := c.readStream(); !bytes.Equal(b.data[4:], term.log) {
		t.Error("command 13 sends another log")
	}
	c.send(zkproto.CmdUserTempRead, []byte{5})
	if b := c.readStream(); len(b.data) != 4+3*72 {
		t.Errorf("command 9 sends %d bytes", len(b.data))
	}
	term, addr = start(t, Options{Records: 50, Bulk: "stream"})
	c = connect(t, addr)
	c.send(zkproto.CmdPrepareBuffer, wantLog)
	if b := c.readStream(); !bytes.Equal(b.data[4:], term.log) || b.last != 0 {
		t.Error("1503 streams another log")
	}
}

func TestTailRead(t *testing.T) {
	term, addr := start(t, Options{Records: 1000})
	c := connect(t, addr)
	c.ask(zkproto.CmdPrepareBuffer, wantLog)
	c.send(zkproto.CmdReadBuffer, words(4+998*40, 1<<20)) // asks for more than there is
	if b := c.readStream(); !bytes.Equal(b.data, term.log[998*40:]) {
		t.Error("the tail differs")
	}
	for _, v := range [][]byte{words(4+1000*40, 40), words(0, 0), words(0), nil} {
		if a := c.ask(zkproto.CmdReadBuffer, v); a.code != zkproto.AckError {
			t.Errorf("1504 with %x is answered %d", v, a.code)
		}
	}
	_, addr = start(t, Options{Records: 1000, NoTail: true})
	c = connect(t, addr)
	if a := c.ask(zkproto.CmdReadBuffer, words(0, 100)); a.code != zkproto.AckError {
		t.Errorf("1504 without a buffer is answered %d", a.code)
	}
	c.ask(zkproto.CmdPrepareBuffer, wantLog)
	if a := c.ask(zkproto.CmdReadBuffer, words(4+998*40, 80)); a.code != zkproto.AckError {
		t.Errorf("a tail read is answered %d", a.code)
	}
	for _, from := range []uint32{0, 1000, 1000, 2000} { // on, once again, on
		c.send(zkproto.CmdReadBuffer, words(from, 1000))
		if b := c.readStream(); len(b.data) != 1000 {
			t.Errorf("from %d came %d bytes", from, len(b.data))
		}
	}
}

// TestReadIsASnapshot: records that come during a read are in the next one.
func TestReadIsASnapshot(t *testing.T) {
	term, addr := start(t, Options{Records: 1000})
	before := bytes.Clone(term.log)
	c := connect(t, addr)
	c.ask(zkproto.CmdPrepareBuffer, wantLog)
	if err := term.Punch(Punch{User: "1", Count: 3}); err != nil {
		t.Fatal(err)
	}
	if err := term.Fault(Fault{Kind: "clear"}); err != nil {
		t.Fatal(err)
	}
	c.send(zkproto.CmdReadBuffer, words(0, 4+1000*40))
	if b := c.readStream(); !bytes.Equal(b.data[4:], before) {
		t.Error("the buffer changed under the reader")
	}
	if n := term.State().Records; n != 0 {
		t.Errorf("%d records after clearing", n)
	}
}

func TestFullLogKeepsItsCount(t *testing.T) {
	term, _ := start(t, Options{Records: 10, Capacity: 10})
	second := term.Log(1, 1)[0]
	if err := term.Punch(Punch{User: "9"}); err != nil {
		t.Fatal(err)
	}
	log := term.Log(0, 100)
	if len(log) != 10 || log[0] != second || log[9].User != "9" {
		t.Errorf("log after one more: %v", log)
	}
}

func TestClock(t *testing.T) {
	zone := time.FixedZone("", 7*3600)
	term, addr := start(t, Options{Now: at("2026-02-28 12:00:00"), Zone: zone})
	if got := term.State().Clock; got != "2026-02-28T19:00:00" {
		t.Errorf("clock %s", got)
	}
	c := connect(t, addr)
	if a := c.ask(zkproto.CmdSetTime, words(0x321cf47e)); a.code != zkproto.AckOK {
		t.Errorf("SET_TIME is answered %d", a.code)
	}
	if got := term.State().Clock; got != "2026-02-28T23:59:58" {
		t.Errorf("clock set: %s", got)
	}
	for _, bad := range []uint32{0x321cf480, 0xffffffff} {
		if a := c.ask(zkproto.CmdSetTime, words(bad)); a.code != zkproto.AckError {
			t.Errorf("SET_TIME %#x is answered %d", bad, a.code)
		}
	}
}

func TestOddCommands(t *testing.T) {
	_, addr := start(t, Options{SizesLen: 112})
	c := connect(t, addr)
	for _, code := range []uint16{2001, 65535, 4242} {
		if a := c.ask(code, []byte("~ExtendFmt\x00")); a.code != zkproto.AckUnknown {
			t.Errorf("command %d is answered %d", code, a.code)
		}
	}
	if a := c.ask(zkproto.CmdOptionRead, []byte("SerialNumber")); string(a.data) != "~SerialNumber=GP00000001\x00" {
		t.Errorf("serial number without tilde and NUL: %q", a.data)
	}
	c.ask(zkproto.CmdOptionWrite, []byte("LockOn=7\x00"))
	if a := c.ask(zkproto.CmdOptionRead, []byte("LockOn\x00")); string(a.data) != "LockOn=7\x00" {
		t.Errorf("option written: %q", a.data)
	}
	c.ask(zkproto.CmdStartVerify, nil)
	if a := c.ask(zkproto.CmdState, nil); a.field != 2 {
		t.Errorf("state %d, want identifying", a.field)
	}
	if a := c.ask(zkproto.CmdGetFreeSizes, nil); len(a.data) != 112 {
		t.Errorf("free sizes of %d bytes", len(a.data))
	}
}

func TestUsersWrittenAndDeleted(t *testing.T) {
	term, addr := start(t, Options{Users: 5})
	c := connect(t, addr)
	ned := unhex(t, "0d000034343400c69a807c4e65640000"+strings.Repeat("00", 16)+"000000de000000020100010002000000"+
		"353535"+strings.Repeat("00", 13+8))
	if len(ned) != 72 {
		t.Fatalf("the vector has %d bytes", len(ned))
	}
	if a := c.ask(zkproto.CmdUserWrite, ned); a.code != zkproto.AckOK {
		t.Errorf("USER_WRQ is answered %d", a.code)
	}
	users := term.Users()
	if got, want := users[len(users)-1], (User{UID: 13, User: "555", Name: "Ned", Password: "444", Card: 222, Group: 2}); got != want {
		t.Errorf("wrote %+v, want %+v", got, want)
	}
	if a := c.ask(zkproto.CmdDeleteUser, []byte{3, 0}); a.code != zkproto.AckOK || term.State().Users != 5 {
		t.Errorf("DELETE_USER is answered %d, %d users", a.code, term.State().Users)
	}
	if a := c.ask(zkproto.CmdDeleteUser, []byte{3, 0}); a.code != zkproto.AckError {
		t.Errorf("again it is answered %d", a.code)
	}
	if a := c.ask(zkproto.CmdClearData, nil); a.code != zkproto.AckOK || term.State().Users != 0 {
		t.Errorf("CLEAR_DATA is answered %d, %d users", a.code, term.State().Users)
	}
}

func TestSecondClient(t *testing.T) {
	t.Run("refuse", func(t *testing.T) {
		_, addr := start(t, Options{})
		first := connect(t, addr)
		turnedAway(t, addr)
		if a := first.ask(zkproto.CmdGetTime, nil); a.code != zkproto.AckOK {
			t.Errorf("the first is answered %d", a.code)
		}
		first.ask(zkproto.CmdExit, nil)
		connect(t, addr)
	})
	t.Run("hang", func(t *testing.T) {
		_, addr := start(t, Options{OneClient: "hang"})
		first := connect(t, addr)
		second := dial(t, addr)
		second.send(zkproto.CmdConnect, nil)
		second.silent(300 * time.Millisecond)
		first.conn.Close()
		if a := second.mustNext(); a.code != zkproto.AckOK {
			t.Errorf("then the second is answered %d", a.code)
		}
	})
	t.Run("kick", func(t *testing.T) {
		_, addr := start(t, Options{OneClient: "kick"})
		first := connect(t, addr)
		connect(t, addr)
		first.ended()
	})
	t.Run("off", func(t *testing.T) {
		term, addr := start(t, Options{OneClient: "off"})
		a, b := connect(t, addr), connect(t, addr)
		if a.session == b.session || term.State().Clients != 2 {
			t.Errorf("sessions %d and %d, %d clients", a.session, b.session, term.State().Clients)
		}
	})
}

func TestDisabledTerminalTakesNoPunch(t *testing.T) {
	term, addr := start(t, Options{})
	c := connect(t, addr)
	c.ask(zkproto.CmdDisable, nil)
	c.conn.Close()
	waitFor(t, "the client to leave", func() bool { return term.State().Clients == 0 })
	if err := term.Punch(Punch{User: "1"}); !errors.Is(err, ErrDisabled) || term.State().Enabled {
		t.Errorf("punch: %v, enabled %v", err, term.State().Enabled)
	}
	c = connect(t, addr)
	c.ask(zkproto.CmdEnable, nil)
	if err := term.Punch(Punch{User: "1"}); err != nil {
		t.Error(err)
	}
	c.ask(zkproto.CmdDisable, words(1)) // by itself enabled again after a second
	if term.State().Enabled {
		t.Error("enabled at once")
	}
	waitFor(t, "the terminal to enable itself", func() bool { return term.State().Enabled })
}

// TestEvents: order, what the mask lets through, and sending again what nobody confirmed.
func TestEvents(t *testing.T) {
	term, addr := start(t, Options{Users: 3, VerifyFirst: true})
	c := connect(t, addr)
	c.ask(zkproto.CmdRegEvent, words(zkproto.EventAll))
	if err := term.Punch(Punch{User: "1"}); err != nil { // before STARTVERIFY: nothing
		t.Fatal(err)
	}
	c.ask(zkproto.CmdStartVerify, nil)
	if err := term.Punch(Punch{User: "2"}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint16{zkproto.EventFinger, zkproto.EventFingerScore, zkproto.EventVerify, zkproto.EventAttLog} {
		if e := c.mustNext(); e.code != zkproto.CmdRegEvent || e.field != want || e.reply != 0 || !e.good {
			t.Fatalf("event %+v, want bit %d", e, want)
		}
		c.write(message(zkproto.AckOK, c.session, 0, nil))
	}
	waitFor(t, "the confirmations", func() bool { return term.State().Unacked == 0 })
	c.ask(zkproto.CmdRegEvent, words(zkproto.EventAttLog))
	if err := term.Punch(Punch{User: "3"}); err != nil {
		t.Fatal(err)
	}
	first := c.mustNext()
	c.write(message(zkproto.AckOK, c.session+1, 0, nil)) // another session's confirmation is none
	if again := c.mustNext(); !bytes.Equal(first.data, again.data) {
		t.Errorf("sent %x, then %x", first.data, again.data)
	}
	c.ask(zkproto.CmdRegEvent, words(zkproto.EventAlarm)) // the punch still waits for its confirmation
	if err := term.Event(zkproto.EventAlarm, words(zkproto.AlarmTamper)); err != nil {
		t.Fatal(err)
	}
	if e := c.mustNext(); e.field != zkproto.EventAlarm || !bytes.Equal(e.data, words(55)) {
		t.Errorf("alarm %+v", e)
	}
	c.ask(zkproto.CmdRegEvent, words(0))
	if err := term.Punch(Punch{User: "3"}); err != nil {
		t.Fatal(err)
	}
	c.silent(50 * time.Millisecond)
	if n := term.State().Records; n != 4 {
		t.Errorf("%d records, want 4", n)
	}
}

// TestEventAmidBulk: a punch is told between two frames of a download.
func TestEventAmidBulk(t *testing.T) {
	term, addr := start(t, Options{Records: 100, FrameMax: 1000, Pause: 20 * time.Millisecond})
	c := connect(t, addr)
	c.ask(zkproto.CmdRegEvent, words(zkproto.EventAttLog))
	c.ask(zkproto.CmdPrepareBuffer, wantLog)
	c.send(zkproto.CmdReadBuffer, words(0, 4004))
	var codes []uint16
	for range 7 {
		codes = append(codes, c.mustNext().code)
		if len(codes) == 2 {
			if err := term.Punch(Punch{User: "1"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if codes[len(codes)-1] != zkproto.AckOK {
		codes = append(codes, c.mustNext().code)
	}
	if codes[2] != zkproto.CmdRegEvent || codes[7] != zkproto.AckOK {
		t.Errorf("frames %v", codes)
	}
}

func TestRestart(t *testing.T) {
	term, addr := start(t, Options{})
	c := connect(t, addr)
	c.ask(zkproto.CmdDisable, nil)
	if a := c.ask(zkproto.CmdRestart, nil); a.code != zkproto.AckOK {
		t.Errorf("RESTART is answered %d", a.code)
	}
	c.ended()
	turnedAway(t, addr)
	if !term.State().Enabled {
		t.Error("still disabled after a restart")
	}
	if err := term.Fault(Fault{Kind: "none"}); err != nil {
		t.Fatal(err)
	}
	if d := connect(t, addr); d.session == c.session {
		t.Error("same session after a restart")
	}
}

func TestUnlockUnit(t *testing.T) {
	for unit, want := range map[time.Duration]float64{0: 3, time.Second: 30} {
		term, addr := start(t, Options{UnlockUnit: unit})
		c := connect(t, addr)
		c.ask(zkproto.CmdUnlock, words(30))
		if d := term.State().Doors; len(d) != 1 || d[0].Seconds != want || time.Since(d[0].At) > time.Minute {
			t.Errorf("unit %v: %+v", unit, d)
		}
		if a := c.ask(zkproto.CmdUnlock, nil); a.code != zkproto.AckError || len(term.State().Doors) != 1 {
			t.Errorf("UNLOCK without a time is answered %d", a.code)
		}
	}
}

func TestOptionsChecked(t *testing.T) {
	err := Options{UserSize: 30, RecordSize: 8, Users: -1, Records: 5, Capacity: 3, OneClient: "two", Bulk: "x", EventSize: 11, SizesLen: 90}.Check()
	want := strings.Join([]string{
		"user size 30: want one of [28 72]",
		"record size 8: want one of [16 40 49]",
		"free sizes of length 90: want one of [4 80 92 112]",
		"event size 11: want one of [10 12 14 32 36 37 52]",
		"users -1: want 0 to 65534",
		"capacity 3: want 5 to 20000000",
		`one client "two": want one of ["refuse" "hang" "kick" "off"]`,
		`bulk "x": want one of ["buffered" "stream" "direct"]`,
	}, "\n")
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
	if err := (Options{OddIDs: true, RecordSize: 16}).Check(); err == nil {
		t.Error("odd ids in 16-byte records pass")
	}
}

func TestSameOptionsSameContent(t *testing.T) {
	o := Options{Users: 50, Records: 1000, OddIDs: true}
	if a, b := New(o), New(o); !bytes.Equal(a.log, b.log) || a.table["MAC"] != b.table["MAC"] {
		t.Error("two terminals of the same options differ")
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(message(zkproto.CmdConnect, 0, 0, nil))
	f.Add(message(zkproto.CmdPrepareBuffer, 0x2001, 1, wantLog))
	f.Add(append(message(zkproto.CmdConnect, 0, 0, nil), message(zkproto.CmdAuth, 0x2001, 1, words(1))...))
	f.Add([]byte("\x50\x50\x82\x7d\xff\xff\xff\x7f"))
	f.Add([]byte("\x50\x50\x82\x7d\x08\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := onesSum(b); got != slowSum(b) {
			t.Fatalf("sum %#x, want %#x", got, slowSum(b))
		}
		term := New(Options{Users: 3, Records: 5})
		s := &session{link: &link{t: term, done: make(chan struct{})}, id: 0x2001, welcome: true, wake: make(chan struct{}, 1)}
		r, buf := bytes.NewReader(b), make([]byte, maxRequest)
		for {
			payload, err := readPayload(r, buf)
			if err != nil {
				return
			}
			req, err := parseRequest(payload)
			if err != nil {
				continue
			}
			again := message(req.code, req.session, req.reply, req.data)[8:]
			copy(again[2:4], payload[2:4]) // ones complement has two zeros, so two checksums may be right
			if !bytes.Equal(again, payload) {
				t.Fatalf("%x reads as %+v", payload, req)
			}
			a := s.handle(req)
			if a.stream != nil {
				a.stream.append(nil, a.from, a.to)
			}
		}
	})
}

// BenchmarkServe measures the simulator's own share of serving 100 000 records: everything but the socket.
func BenchmarkServe(b *testing.B) {
	term := New(Options{Users: 1000, Records: 100_000})
	here, there := net.Pipe()
	defer here.Close()
	go func() { _, _ = io.Copy(io.Discard, there) }()
	s := &session{link: &link{t: term, conn: here, done: make(chan struct{})}, id: 1, welcome: true}
	for b.Loop() {
		s.handle(request{code: zkproto.CmdPrepareBuffer, session: 1, data: wantLog})
		size := uint32(s.set.size())
		for at := uint32(0); at < size; at += zkproto.MaxChunk {
			req := request{code: zkproto.CmdReadBuffer, session: 1, data: words(at, zkproto.MaxChunk)}
			if err := s.answer(req, s.handle(req)); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.SetBytes(int64(len(term.log)))
}
