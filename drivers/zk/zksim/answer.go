package zksim

import (
	"bytes"
	"strings"
	"time"

	"gatepost/drivers/zk/zkproto"
)

// answer is what a request gets: one frame, or a stream of them.
type answer struct {
	code   uint16
	field  uint16 // in place of the session id, where named
	named  bool
	data   []byte
	stream *dataset // PrepareData, its bytes from..to as Data, AckOK; instead of one frame
	from   int
	to     int
	then   func() // once it went out
	bye    bool   // then the connection closes
}

var (
	ok     = answer{code: zkproto.AckOK}
	failed = answer{code: zkproto.AckError}
)

func okData(b []byte) answer { return answer{code: zkproto.AckOK, data: b} }

// dataset is what a bulk read transfers: its length, then users or records.
type dataset struct {
	length uint32
	body   []byte
	next   int  // where the client should go on reading
	last   int  // where it read last
	ready  bool // there is one
}

func newDataset(body []byte, wrong int) dataset {
	return dataset{length: uint32(len(body) + wrong), body: body, ready: true}
}

func (d *dataset) size() int { return 4 + len(d.body) }

// append appends the bytes from..to of the whole, length included.
func (d *dataset) append(b []byte, from, to int) []byte {
	if from < 4 {
		var head [4]byte
		le.PutUint32(head[:], d.length)
		b = append(b, head[from:min(to, 4)]...)
		if to <= 4 {
			return b
		}
		from = 4
	}
	return append(b, d.body[from-4:to-4]...)
}

// answer sends a.
func (s *session) answer(req request, a answer) error {
	if f, ok := s.t.strike("delay"); ok && !s.sleep(f.Duration) {
		return errGone
	}
	field := s.id
	if field == 0 {
		field = req.session
	}
	if _, ok := s.t.strike("foreign"); ok {
		if err := s.send(frame{code: zkproto.AckOK, field: field + 1, reply: req.reply + 7, more: true}); err != nil {
			return err
		}
		if err := s.send(frame{code: zkproto.AckOK, field: field, reply: req.reply - 1, more: true}); err != nil {
			return err
		}
	}
	if a.stream != nil {
		return s.stream(req.reply, a.stream, a.from, a.to)
	}
	if a.named {
		field = a.field
	}
	return s.send(frame{code: a.code, field: field, reply: req.reply, data: func(b []byte) []byte { return append(b, a.data...) }})
}

// stream sends the bytes from..to of d. The field of its frames is their number, but for the first.
func (s *session) stream(reply uint16, d *dataset, from, to int) error {
	most := s.t.o.FrameMax
	head := func(b []byte) []byte {
		b = le.AppendUint32(b, uint32(to-from))
		return le.AppendUint32(b, uint32(most))
	}
	send := func(f frame) error {
		f.reply, f.bulk = reply, true
		if err := s.send(f); err != nil {
			return err
		}
		if !f.hold && !s.sleep(s.t.o.Pause) {
			return errGone
		}
		return nil
	}
	if err := send(frame{code: zkproto.CmdPrepareData, field: s.id, data: head, more: true}); err != nil {
		return err
	}
	var number uint16
	for at := from; at < to; at += most {
		if at > from {
			number++
		}
		data := func(b []byte) []byte { return d.append(b, at, min(at+most, to)) }
		f := frame{code: zkproto.CmdData, field: number, data: data, more: true}
		// The clients that need a pause count bytes and go on at the last one: they would take a later AckOK for their next answer.
		f.hold = s.t.o.Pause > 0 && at+most >= to
		if err := send(f); err != nil {
			return err
		}
	}
	return send(frame{code: zkproto.AckOK, field: number})
}

// handle does what req asks.
func (s *session) handle(req request) answer {
	t := s.t
	switch {
	case req.code == zkproto.CmdConnect:
		return s.connect()
	case req.code == zkproto.CmdAuth && s.id != 0:
		return s.auth(req.data)
	case s.id == 0 || !s.welcome || req.session != s.id:
		return answer{code: zkproto.AckUnauth}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch req.code {
	case zkproto.CmdExit:
		s.mask = 0
		return answer{code: zkproto.AckOK, bye: true}
	case zkproto.CmdEnable:
		t.disabled = false
		return ok
	case zkproto.CmdDisable:
		t.disabled, t.until = true, time.Time{}
		if sec := number(req.data); sec > 0 {
			t.until = time.Now().Add(time.Duration(sec) * time.Second)
		}
		return ok
	case zkproto.CmdRestart:
		return answer{code: zkproto.AckOK, bye: true, then: func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.restart(bootTime, s)
		}}
	case zkproto.CmdPowerOff:
		return answer{code: zkproto.AckOK, bye: true, then: func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.off = true
			t.hangUp(s)
		}}
	case zkproto.CmdRefreshData, zkproto.CmdRefreshOption, zkproto.CmdTestVoice:
		return ok
	case zkproto.CmdStartVerify:
		s.verifying = true
		return ok
	case zkproto.CmdCancelCapture:
		s.verifying = false
		return ok
	case zkproto.CmdState:
		state := uint16(0) // idle
		if s.verifying {
			state = 2
		}
		if !t.enabled() {
			state = 4 // busy
		}
		return answer{code: zkproto.AckOK, named: true, field: state}
	case zkproto.CmdGetVersion:
		return okData([]byte("Ver 6.60 Apr 28 2015\x00"))
	case zkproto.CmdPinWidth:
		return okData([]byte{t.pinWidth()})
	case zkproto.CmdOptionRead:
		return t.readOption(text(req.data))
	case zkproto.CmdOptionWrite:
		name, value, found := strings.Cut(text(req.data), "=")
		if !found || name == "" || len(t.table) >= 1000 {
			return failed
		}
		t.table[name] = value
		return ok
	case zkproto.CmdGetTime:
		return okData(le.AppendUint32(nil, t.clock().pack()))
	case zkproto.CmdSetTime:
		if len(req.data) < 4 || !t.setClock(unpack(le.Uint32(req.data))) {
			return failed
		}
		return ok
	case zkproto.CmdGetFreeSizes:
		return okData(t.sizes())
	case zkproto.CmdRegEvent:
		if len(req.data) < 4 {
			return failed
		}
		if s.mask = le.Uint32(req.data); s.mask == 0 {
			s.queue, s.flying = nil, 0
		}
		return ok
	case zkproto.CmdUnlock:
		if len(req.data) < 4 {
			return failed
		}
		hold := time.Duration(le.Uint32(req.data)) * t.o.UnlockUnit
		if len(t.doors) == maxOpenings {
			t.doors = t.doors[1:]
		}
		t.doors = append(t.doors, Opening{t.o.Now(), hold.Seconds()})
		return ok
	case zkproto.CmdDoorState:
		var open byte
		if n := len(t.doors); n > 0 && t.o.Now().Sub(t.doors[n-1].At).Seconds() < t.doors[n-1].Seconds {
			open = 1
		}
		return okData([]byte{open})
	case zkproto.CmdPrepareBuffer:
		return s.prepare(req.data)
	case zkproto.CmdReadBuffer:
		return s.readBuffer(req.data)
	case zkproto.CmdFreeData:
		s.set = dataset{}
		return ok
	case zkproto.CmdAttLogRead, zkproto.CmdOpLogRead:
		return s.direct(req.code)
	case zkproto.CmdUserTempRead:
		if len(req.data) != 1 || req.data[0] != zkproto.FctUser {
			return failed // fingerprints: there are none
		}
		return s.direct(req.code)
	case zkproto.CmdClearAttLog:
		t.log = nil
		return ok
	case zkproto.CmdClearOpLog:
		return ok
	case zkproto.CmdClearData:
		return t.clear(req.data)
	case zkproto.CmdUserWrite:
		return t.writeUser(req.data)
	case zkproto.CmdDeleteUser:
		return t.deleteUser(req.data)
	}
	return answer{code: zkproto.AckUnknown}
}

// connect gives the session its id; a second time it keeps it.
func (s *session) connect() answer {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.id == 0 {
		s.t.next++
		if s.t.next == 0 {
			s.t.next++
		}
		s.id = s.t.next
		s.welcome = s.t.o.Key == 0
	}
	if !s.welcome {
		return answer{code: zkproto.AckUnauth}
	}
	return ok
}

// auth checks the comm key.
func (s *session) auth(data []byte) answer {
	if s.welcome {
		return ok
	}
	if len(data) >= 4 {
		want := proof(s.t.o.Key, s.id, data[2])
		s.welcome = bytes.Equal(data[:4], want[:])
	}
	if !s.welcome {
		return answer{code: zkproto.AckUnauth}
	}
	return ok
}

// number is a u32 argument; 0 where there is none.
func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return le.Uint32(b)
}

func (t *Terminal) pinWidth() byte {
	if t.o.OddIDs {
		return 24
	}
	return 9
}

// readOption finds a name with or without its leading tilde.
func (t *Terminal) readOption(name string) answer {
	for _, n := range []string{name, "~" + name, strings.TrimPrefix(name, "~")} {
		if v, found := t.table[n]; found {
			return okData([]byte(n + "=" + v + "\x00"))
		}
	}
	return failed
}

// sizes is the answer to CmdGetFreeSizes.
func (t *Terminal) sizes() []byte {
	records := t.records()
	if f := t.fault("miscount"); f != nil {
		records = max(0, records+f.Count)
	}
	n := make([]uint32, t.o.SizesLen/4)
	if len(n) == 1 { // some models want an argument that nobody knows, and answer 0
		return make([]byte, 4)
	}
	put := func(place, v int) {
		if place < len(n) {
			n[place] = uint32(v)
		}
	}
	admins, passwords := 0, 0
	for _, u := range t.users {
		if u.priv > zkproto.PrivEnroller {
			admins++
		}
		if u.password != "" {
			passwords++
		}
	}
	const userCap, fingerCap = 10_000, 3000
	put(zkproto.SizeUsers, len(t.users))
	put(zkproto.SizeRecords, records)
	put(zkproto.SizeAdmins, admins)
	put(zkproto.SizePasswords, passwords)
	put(zkproto.SizeFingerCap, fingerCap)
	put(zkproto.SizeUserCap, max(userCap, len(t.users)))
	put(zkproto.SizeRecordCap, t.o.Capacity)
	put(zkproto.SizeFingerFree, fingerCap)
	put(zkproto.SizeUserFree, max(userCap, len(t.users))-len(t.users))
	put(zkproto.SizeRecordFree, max(0, t.o.Capacity-records))
	put(zkproto.SizeFaceCap, 400)
	var b []byte
	for _, v := range n {
		b = le.AppendUint32(b, v)
	}
	return b
}

// dataFor makes the data set that a bulk command names. t.mu is held.
func (s *session) dataFor(command uint16, fct uint32) bool {
	t := s.t
	var body []byte
	switch {
	case command == zkproto.CmdAttLogRead:
		body = t.log
	case command == zkproto.CmdUserTempRead && fct == zkproto.FctUser:
		for i := range t.users {
			body = t.users[i].append(body, t.o.UserSize)
		}
	case command == zkproto.CmdOpLogRead || command == cmdTemplates && fct == fctTemplates:
		// there are none
	default:
		return false
	}
	wrong := 0
	if f := t.fault("prefix"); f != nil {
		wrong = f.Count
	}
	s.set = newDataset(body, wrong)
	return true
}

// Reading all fingerprints: 1503 with this sub-command and type.
const (
	cmdTemplates = 7
	fctTemplates = 2
)

// prepare answers CmdPrepareBuffer. t.mu is held.
func (s *session) prepare(data []byte) answer {
	if s.t.o.Bulk == "direct" {
		return answer{code: zkproto.AckUnknown}
	}
	if len(data) < 11 || data[0] != 1 || !s.dataFor(le.Uint16(data[1:]), le.Uint32(data[3:])) {
		return failed
	}
	d := &s.set
	if s.t.o.Bulk == "stream" {
		return answer{stream: d, to: d.size()}
	}
	if d.size() <= s.t.o.Inline {
		return answer{code: zkproto.CmdData, data: d.append(nil, 0, d.size())}
	}
	b := le.AppendUint32([]byte{0}, uint32(d.size()))
	b = le.AppendUint32(b, uint32(d.size()))
	return okData(le.AppendUint32(b, uint32(onesSum(d.body[:min(len(d.body), 4096)]))<<8)) // nobody knows what this is
}

// direct answers the bulk commands of old. t.mu is held.
func (s *session) direct(command uint16) answer {
	if !s.dataFor(command, zkproto.FctUser) {
		return failed
	}
	return answer{stream: &s.set, to: s.set.size()}
}

// readBuffer answers CmdReadBuffer. t.mu is held.
func (s *session) readBuffer(data []byte) answer {
	d := &s.set
	if len(data) < 8 || !d.ready {
		return failed
	}
	from, size := int(le.Uint32(data)), int(le.Uint32(data[4:]))
	if from >= d.size() || size == 0 {
		return failed
	}
	if s.t.o.NoTail && from != 0 && from != d.next && from != d.last {
		return failed
	}
	to := min(from+size, d.size())
	d.last, d.next = from, to
	return answer{stream: d, from: from, to: to}
}

// clear answers CmdClearData: everything, or one type. t.mu is held.
func (t *Terminal) clear(data []byte) answer {
	all := len(data) == 0
	if all || data[0] == zkproto.FctAttLog {
		t.log = nil
	}
	if all || data[0] == zkproto.FctUser {
		t.users = nil
		t.index()
	}
	return ok
}

// writeUser answers CmdUserWrite. t.mu is held.
func (t *Terminal) writeUser(data []byte) answer {
	u, good := parseUser(data)
	if !good || len(data) != t.o.UserSize {
		return failed
	}
	for i := range t.users {
		if t.users[i].uid == u.uid {
			t.users[i] = u
			t.index()
			return ok
		}
	}
	if len(t.users) >= maxUsers {
		return failed
	}
	t.users = append(t.users, u)
	t.index()
	return ok
}

// deleteUser answers CmdDeleteUser. t.mu is held.
func (t *Terminal) deleteUser(data []byte) answer {
	if len(data) < 2 {
		return failed
	}
	for i := range t.users {
		if t.users[i].uid == le.Uint16(data) {
			t.users = append(t.users[:i:i], t.users[i+1:]...)
			t.index()
			return ok
		}
	}
	return failed
}
