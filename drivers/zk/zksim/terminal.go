// Package zksim plays a ZKTeco terminal: users, a log, a clock, a door and live events behind the terminal protocol, and
// every way of misbehaving that the field has reported, on demand. Tests, "gatepost simulate zk" and "make demo" run it.
// It shares the protocol's numbers with the driver and nothing else: the codec here is its own.
package zksim

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"gatepost"
	"gatepost/drivers/zk/zkproto"
)

// Options say what a terminal is and how its firmware behaves. The zero value is an empty terminal with a colour screen.
type Options struct {
	Serial     string // default "GP00000001"
	Key        uint32 // comm key; 0: none asked
	Users      int    // at first, with ids "1" to Users
	UserSize   int    // 28 or 72 bytes; default 72
	Records    int    // at first, spread over 2025
	RecordSize int    // 16, 40 or 49 bytes; default 40
	Capacity   int    // records; the oldest one goes when one more comes; default 100 000, at least Records
	OddIDs     bool   // two users of ten have a leading zero or letters in their id; not with sizes 28 and 16, which hold numbers

	OneClient string // a second client is: "refuse" (default), "hang" (served when the first left), "kick" (the first goes), "off" (served)

	Bulk     string // bulk reads are: "buffered" (default), "stream" (sent at once after PrepareBuffer), "direct" (PrepareBuffer unknown)
	Inline   int    // a data set up to so many bytes goes in one frame; default 1000, -1: never
	FrameMax int    // most data bytes per bulk frame, seen: 1008, 65528, 65536; default 65536
	NoTail   bool   // reads at a place other than the next are refused

	Pause time.Duration // between bulk frames, for clients that take one read for one frame

	SizesLen    int  // bytes in the answer to GetFreeSizes: 4, 80, 92 or 112; default 92
	EventSize   int  // bytes in an attendance event: 10, 12, 14, 32, 36, 37 or 52; default 32, with 16-byte records 12
	VerifyFirst bool // no events before StartVerify

	UnlockUnit  time.Duration     // of CmdUnlock's number; default 100 ms
	AnyChecksum bool              // requests with a wrong checksum are answered; else they meet silence
	Table       map[string]string // options that override or join the usual ones

	Now  func() time.Time // default time.Now
	Zone *time.Location   // of the wall clock at first; default time.Local
	Log  *slog.Logger     // default: none
}

// fill puts the defaults in and checks the rest.
func (o *Options) fill() error {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.UserSize, 72)
	def(&o.RecordSize, 40)
	def(&o.Capacity, max(100_000, o.Records))
	def(&o.Inline, 1000)
	def(&o.FrameMax, 65536)
	def(&o.SizesLen, 92)
	if o.RecordSize == 16 {
		def(&o.EventSize, 12)
	}
	def(&o.EventSize, 32)
	if o.Serial == "" {
		o.Serial = "GP00000001"
	}
	if o.OneClient == "" {
		o.OneClient = "refuse"
	}
	if o.Bulk == "" {
		o.Bulk = "buffered"
	}
	if o.UnlockUnit == 0 {
		o.UnlockUnit = 100 * time.Millisecond
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Zone == nil {
		o.Zone = time.Local
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	var errs []error
	oneOf := func(name string, v int, of ...int) {
		for _, w := range of {
			if v == w {
				return
			}
		}
		errs = append(errs, fmt.Errorf("%s %d: want one of %v", name, v, of))
	}
	within := func(name string, v, lo, hi int) {
		if v < lo || v > hi {
			errs = append(errs, fmt.Errorf("%s %d: want %d to %d", name, v, lo, hi))
		}
	}
	word := func(name, v string, of ...string) {
		for _, w := range of {
			if v == w {
				return
			}
		}
		errs = append(errs, fmt.Errorf("%s %q: want one of %q", name, v, of))
	}
	oneOf("user size", o.UserSize, 28, 72)
	oneOf("record size", o.RecordSize, 16, 40, 49)
	oneOf("free sizes of length", o.SizesLen, 4, 80, 92, 112)
	oneOf("event size", o.EventSize, 10, 12, 14, 32, 36, 37, 52)
	within("users", o.Users, 0, maxUsers)
	within("records", o.Records, 0, 20_000_000)
	within("capacity", o.Capacity, max(1, o.Records), 20_000_000)
	within("bytes per frame", o.FrameMax, 1, zkproto.MaxPayload-zkproto.HeaderLen)
	within("bytes inline", o.Inline, -1, zkproto.MaxPayload-zkproto.HeaderLen)
	word("one client", o.OneClient, "refuse", "hang", "kick", "off")
	word("bulk", o.Bulk, "buffered", "stream", "direct")
	if o.OddIDs && (o.UserSize == 28 || o.RecordSize == 16 || o.EventSize == 12) {
		errs = append(errs, errors.New("odd ids do not fit into 28-byte users, 16-byte records or 12-byte events: those hold numbers"))
	}
	if o.UnlockUnit < 0 || o.Pause < 0 {
		errs = append(errs, errors.New("a duration is negative"))
	}
	return errors.Join(errs...)
}

// Check says what is wrong with o.
func (o Options) Check() error { return o.fill() }

// maxUsers is the largest uid in practice.
const maxUsers = 65534

// Terminal is one simulated terminal. Its methods are safe for several goroutines.
type Terminal struct {
	o Options

	mu       sync.Mutex // guards all below
	users    []user
	byID     map[string]int // user id to place in users
	log      []byte         // records of RecordSize, oldest first; bytes once written never change, so a reader may hold a slice
	table    map[string]string
	offset   time.Duration // the wall clock, beyond Now in Zone
	disabled bool
	until    time.Time // disabled until; zero: until enabled
	doors    []Opening
	faults   map[string]*fault
	off      bool      // powered off, until a fault "none"
	back     time.Time // starting again, not reachable before
	next     uint16    // last session id given
	sessions map[*session]struct{}
	holder   *session // the one client
	requests int
}

// New makes a terminal whose content depends on o alone. It panics where o.Check fails.
func New(o Options) *Terminal {
	if err := o.fill(); err != nil {
		panic("zksim: " + err.Error())
	}
	t := &Terminal{
		o:        o,
		faults:   map[string]*fault{},
		sessions: map[*session]struct{}{},
		next:     0x2000,
	}
	for i := range o.Users {
		t.users = append(t.users, makeUser(i, o.OddIDs))
	}
	t.index()
	t.log = makeLog(o.Records, o.RecordSize, t.users, 0)
	t.table = makeTable(&o)
	return t
}

// index rebuilds byID.
func (t *Terminal) index() {
	t.byID = make(map[string]int, len(t.users))
	for i, u := range t.users {
		t.byID[u.id] = i
	}
}

// State is what a terminal holds right now.
type State struct {
	Serial   string        `json:"serial"`
	Users    int           `json:"users"`
	Records  int           `json:"records"`
	Clock    gatepost.Wall `json:"clock"`
	Enabled  bool          `json:"enabled"`
	Doors    []Opening     `json:"doors"`
	Clients  int           `json:"clients"`
	Unacked  int           `json:"unacked"`  // events sent or waiting that no client confirmed yet
	Requests int           `json:"requests"` // received since the start, event confirmations not counted
}

// Opening is one time that a client opened the door.
type Opening struct {
	At      time.Time `json:"at"`
	Seconds float64   `json:"seconds"`
}

// maxOpenings bounds the door log; the oldest go.
const maxOpenings = 1 << 17

// State tells what the terminal holds.
func (t *Terminal) State() State {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := State{
		Serial:   t.o.Serial,
		Users:    len(t.users),
		Records:  t.records(),
		Clock:    t.clock().wall(),
		Enabled:  t.enabled(),
		Doors:    append([]Opening{}, t.doors...),
		Clients:  len(t.sessions),
		Requests: t.requests,
	}
	for c := range t.sessions {
		s.Unacked += len(c.queue)
	}
	return s
}

// Users tells the user table.
func (t *Terminal) Users() []User {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]User, len(t.users))
	for i, u := range t.users {
		out[i] = User{int(u.uid), u.id, u.name, int(u.priv), u.password, u.card, int(u.group)}
		if t.o.UserSize == 28 {
			out[i].Name, out[i].Password = clip(u.name, 8), clip(u.password, 5)
		}
	}
	return out
}

// Log tells up to n records from the given one, 0 being the oldest.
func (t *Terminal) Log(from, n int) []Entry {
	t.mu.Lock()
	log := t.log
	t.mu.Unlock()
	size := t.o.RecordSize
	out := []Entry{}
	for i := max(0, from); i < from+n && (i+1)*size <= len(log); i++ {
		e := parseEntry(log[i*size : (i+1)*size])
		out = append(out, Entry{int(e.uid), e.id, e.time.wall(), int(e.verify), int(e.state)})
	}
	return out
}

func (t *Terminal) records() int { return len(t.log) / t.o.RecordSize }

// wallTime is the terminal's clock as a time in UTC, for arithmetic.
func (t *Terminal) wallTime() time.Time {
	now := t.o.Now().In(t.o.Zone)
	_, east := now.Zone()
	return now.UTC().Add(time.Duration(east)*time.Second + t.offset)
}

func (t *Terminal) clock() civil { return civilOf(t.wallTime()) }

// setClock makes c the time. It refuses days that no calendar has.
func (t *Terminal) setClock(c civil) bool {
	want := time.Date(c.year, time.Month(c.month), c.day, c.hour, c.minute, c.second, 0, time.UTC)
	if civilOf(want) != c || c.year > 2099 {
		return false
	}
	t.offset += want.Sub(t.wallTime())
	return true
}

func (t *Terminal) enabled() bool {
	return !t.disabled || !t.until.IsZero() && !time.Now().Before(t.until)
}

// add appends one record and lets the oldest go where there is no room.
func (t *Terminal) add(e *entry) {
	t.log = e.append(t.log, t.o.RecordSize)
	if t.records() > t.o.Capacity {
		t.log = t.log[t.o.RecordSize:]
	}
}

// Punch is a person showing themselves to the terminal.
type Punch struct {
	User      string             `json:"user"`      // an id; one that is not in the table is a person since deleted
	Time      gatepost.Wall      `json:"time"`      // default: the terminal's clock; need not be in the calendar
	Method    gatepost.Method    `json:"method"`    // default finger
	Direction gatepost.Direction `json:"direction"` // default in
	Count     int                `json:"count"`     // so many at once; default 1
}

// ErrDisabled is what a person meets while a client has disabled the terminal.
var ErrDisabled = errors.New("the terminal is disabled")

// Punch appends p to the log and tells every client that registered for it.
func (t *Terminal) Punch(p Punch) error {
	e, err := t.entry(p)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.enabled() {
		return ErrDisabled
	}
	if i, known := t.byID[p.User]; known {
		e.uid = t.users[i].uid
	}
	for range max(1, p.Count) {
		if p.Time == "" {
			e.time = t.clock()
		}
		t.add(&e)
		t.announce(&e, p.Method == "" || p.Method == gatepost.MethodFinger)
	}
	return nil
}

// entry checks p and turns it into codes.
func (t *Terminal) entry(p Punch) (entry, error) {
	e := entry{id: p.User}
	if p.Count < 0 || p.Count > 100_000 {
		return e, fmt.Errorf("count %d: want 1 to 100000", p.Count)
	}
	if p.User == "" || len(p.User) > 24 || !utf8.ValidString(p.User) {
		return e, fmt.Errorf("user %q: want 1 to 24 bytes of text", p.User)
	}
	if t.o.RecordSize == 16 || t.o.EventSize == 12 {
		if n, err := strconv.ParseUint(p.User, 10, 32); err != nil || strconv.FormatUint(n, 10) != p.User {
			return e, fmt.Errorf("user %q: this terminal holds plain numbers only", p.User)
		}
	}
	if p.Time != "" {
		var err error
		if e.time, err = parseWall(p.Time); err != nil {
			return e, err
		}
	}
	old := t.o.RecordSize == 16 // card and password have other numbers on colour screens
	switch p.Method {
	case "", gatepost.MethodFinger:
		e.verify = zkproto.VerifyFinger
	case gatepost.MethodFace:
		e.verify = zkproto.VerifyFace
	case gatepost.MethodCard:
		e.verify = zkproto.VerifyCardTFT
		if old {
			e.verify = zkproto.VerifyCard
		}
	case gatepost.MethodPIN:
		e.verify = zkproto.VerifyPasswordTFT
		if old {
			e.verify = zkproto.VerifyPassword
		}
	case gatepost.MethodPalm:
		e.verify = zkproto.VerifyPalm
	case gatepost.MethodQR, gatepost.MethodOther:
		e.verify = zkproto.VerifyOther
	default:
		return e, fmt.Errorf("method %q: want finger, face, card, pin, palm, qr or other", p.Method)
	}
	switch p.Direction {
	case "", gatepost.DirectionIn:
		e.state = zkproto.StateCheckIn
	case gatepost.DirectionOut:
		e.state = zkproto.StateCheckOut
	case gatepost.DirectionBreakOut:
		e.state = zkproto.StateBreakOut
	case gatepost.DirectionBreakIn:
		e.state = zkproto.StateBreakIn
	case gatepost.DirectionOvertimeIn:
		e.state = zkproto.StateOvertimeIn
	case gatepost.DirectionOvertimeOut:
		e.state = zkproto.StateOvertimeOut
	case gatepost.DirectionNone:
		e.state = zkproto.StateNone
	default:
		return e, fmt.Errorf("direction %q: want in, out, break_out, break_in, overtime_in, overtime_out or none", p.Direction)
	}
	return e, nil
}

// makeTable is what CmdOptionRead knows.
func makeTable(o *Options) map[string]string {
	platform, width := "ZEM760_TFT", "9"
	if o.UserSize == 28 {
		platform = "ZEM500"
	}
	if o.OddIDs {
		width = "24"
	}
	var tail [4]byte
	le.PutUint32(tail[:], uint32(onesSum([]byte(o.Serial)))*2654435761)
	m := map[string]string{
		"~SerialNumber":     o.Serial,
		"~Platform":         platform,
		"~DeviceName":       "F19/ID",
		"MAC":               "00:17:61:" + fmt.Sprintf("%02x:%02x:%02x", tail[1], tail[2], tail[3]),
		"~OEMVendor":        "ZKTECO CO., LTD.",
		"~ProductTime":      "2018-06-25 09:30:00",
		"~OS":               "1",
		"~ZKFPVersion":      "10",
		"ZKFaceVersion":     "0",
		"FaceFunOn":         "0",
		"FingerFunOn":       "1",
		"~RFCardOn":         "1",
		"~IsOnlyRFMachine":  "0",
		"~PIN2Width":        width,
		"~IsABCPinEnable":   map[bool]string{true: "1", false: "0"}[o.OddIDs],
		"~T9FunOn":          "0",
		"~ExtendFmt":        "0",
		"~UserExtFmt":       "0",
		"ExtendOPLog":       "0",
		"CompatOldFirmware": "0",
		"WorkCode":          "0",
		"Language":          "97",
		"NewLng":            "97",
		"IPAddress":         "127.0.0.1",
		"NetMask":           "255.0.0.0",
		"GATEIPAddress":     "127.0.0.1",
		"DHCP":              "0",
		"TCPPort":           "4370",
		"UDPPort":           "4370",
		"DeviceID":          "1",
		"LockOn":            "5",
		"AntiPassbackOn":    "0",
		"VOLUME":            "67",
		"VoiceOn":           "1",
		"DelRecord":         "1",
	}
	for k, v := range o.Table {
		m[k] = v
	}
	return m
}

// reset closes a connection the hard way, as a terminal that lost power or patience does.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
