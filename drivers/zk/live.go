package zk

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"gatepost"
	"gatepost/drivers/zk/zkproto"
)

// maxBatch is how many waiting events go into one emit.
const maxBatch = 256

// keepAlive times the timeout is how long a link may be silent before the terminal is asked whether it is there.
const keepAlive = 6

var errListening = errors.New("listen: this session listens already")

// Listen emits events as they come and confirms each after it is stored. An event that names nobody we can name is
// confirmed all the same: the record itself is in the terminal's log.
func (s *session) Listen(ctx context.Context, emit gatepost.Emit) error {
	if !s.listening.CompareAndSwap(false, true) {
		return errListening
	}
	defer s.listening.Store(false)
	// Some firmware sends no events before it is verifying; what refuses this does not need it.
	for _, cmd := range []uint16{zkproto.CmdCancelCapture, zkproto.CmdStartVerify} {
		if _, err := s.l.do(ctx, normal, "start verifying", cmd, nil); unlessRefused(err) != nil {
			return err
		}
	}
	if _, err := s.l.do(ctx, normal, "ask for events", zkproto.CmdRegEvent, le.AppendUint32(nil, zkproto.EventAll)); err != nil {
		if unlessRefused(err) == nil {
			return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
		}
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
		defer cancel()
		if err := s.l.post(ctx, zkproto.CmdRegEvent, le.AppendUint32(nil, 0)); err != nil {
			s.env.Log.Debug("events were not turned off", "err", err)
		}
	}()
	tick := time.NewTicker(s.Timeout)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.l.done:
			return fmt.Errorf("listen: %w", s.l.err)
		case f := <-s.l.events:
			if err := s.take(ctx, f, emit); err != nil {
				return err
			}
		case <-tick.C:
			if s.l.silent() < keepAlive*s.Timeout {
				continue
			}
			if _, err := s.l.call(ctx, normal, "keep the link", zkproto.CmdGetTime, nil); err != nil {
				return err
			}
		}
	}
}

// take stores an event and those that wait behind it, and confirms them.
func (s *session) take(ctx context.Context, f frame, emit gatepost.Emit) error {
	if n := s.l.dropped.Swap(0); n > 0 {
		s.env.Log.Warn("events came faster than they could be stored; the terminal's log has them", "count", n)
	}
	var rs []gatepost.Record
	n := 0
	for more := true; more; {
		var err error
		if rs, err = s.event(ctx, rs, f); err != nil {
			return err
		}
		if n++; n == maxBatch {
			break
		}
		select {
		case f = <-s.l.events:
		default:
			more = false
		}
	}
	if len(rs) > 0 {
		if err := emit(ctx, rs...); err != nil {
			return err
		}
	}
	for range n {
		if err := s.l.ack(ctx); err != nil {
			return fmt.Errorf("confirm an event: %w", err)
		}
	}
	return nil
}

// event appends the records that f tells, if any.
func (s *session) event(ctx context.Context, rs []gatepost.Record, f frame) ([]gatepost.Record, error) {
	switch f.session {
	case zkproto.EventAttLog:
		hits := decodeAttLog(f.data)
		if len(hits) == 0 {
			s.env.Log.Debug("punch left to the log: an event of unknown form", "bytes", hex.EncodeToString(f.data))
		}
		for _, h := range hits {
			r, ok, err := s.punch(ctx, h)
			if err != nil {
				return rs, err
			}
			if ok {
				rs = append(rs, r)
			}
		}
		return rs, nil
	case zkproto.EventAlarm:
		return append(rs, gatepost.Record{Data: decodeAlarm(f.data)}), nil
	}
	s.env.Log.Debug("event without a record", "verb", f.session, "bytes", len(f.data))
	return rs, nil
}

// A punch in an event, by length. Time is yy mm dd hh mm ss, binary; what follows it is not known.
//
//	     0         2        3       4
//	10:  | uid     | verify | state | time        the state's upper half says something else
//	14:  | uid     | verify | state | time | 4
//	     0         4        5       6
//	12:  | number  | verify | state | time
//	     0         24       25      26
//	32+: | id text | verify | state | time | 0 to 19
//	52+: | id text | verify | state | time | 20 | perhaps another of these, of any form
type hit struct {
	by     idForm
	text   []byte // by byText
	number uint32 // by byNumber, byIndex
	verify int
	state  int
	time   [6]byte
	raw    []byte
}

// idForm is how an event names a person.
type idForm uint8

const (
	byText   idForm = iota
	byNumber        // the id as a number, leading zeros lost
	byIndex         // the terminal's internal number
)

const hitText, hitLong = 32, 52

// decodeAttLog gives the punches in an event; none for a form that is not known.
func decodeAttLog(b []byte) []hit {
	var hs []hit
	for {
		var h hit
		var rest []byte
		switch n := len(b); {
		case n == 10 || n == 14:
			h = hit{by: byIndex, number: uint32(le.Uint16(b)), verify: int(b[2]), state: int(b[3]), time: [6]byte(b[4:])}
			if n == 10 {
				h.state &= 15
			}
		case n == 12:
			h = hit{by: byNumber, number: le.Uint32(b), verify: int(b[4]), state: int(b[5]), time: [6]byte(b[6:])}
		case n >= hitText:
			h = hit{by: byText, text: field(b[:24]), verify: int(b[24]), state: int(b[25]), time: [6]byte(b[26:])}
			if n >= hitLong {
				b, rest = b[:hitLong], b[hitLong:]
			}
		default:
			return hs
		}
		h.raw = b
		hs = append(hs, h)
		b = rest
	}
}

// wall is when it was; ok is false for a time that the terminal's log cannot hold.
func (h hit) wall() (w gatepost.Wall, impossible, ok bool) {
	year, month, day, hour, minute, second := 2000+int(h.time[0]), int(h.time[1]), int(h.time[2]), int(h.time[3]), int(h.time[4]), int(h.time[5])
	if year > 2133 || month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 || second > 59 {
		return "", true, false
	}
	return gatepost.NewWall(year, month, day, hour, minute, second), !realDate(year, month, day), true
}

// punch makes a record of h under the name that the terminal's log gives the person, so that the two are one record. Where
// that name or the time cannot be known, ok is false and the log alone tells.
func (s *session) punch(ctx context.Context, h hit) (r gatepost.Record, ok bool, err error) {
	raw := Raw{Verify: h.verify, State: h.state}
	user, odd := "", false
	switch {
	case h.by == byText:
		user, odd = s.Encoding.text(h.text)
		if n, err := strconv.ParseUint(user, 10, 32); err == nil && s.logSize.Load() == recordSmall {
			user = strconv.FormatUint(n, 10) // its log has numbers
		}
	case h.by == byNumber && s.logSize.Load() == recordSmall:
		user = strconv.FormatUint(uint64(h.number), 10)
	default:
		if h.by == byIndex {
			raw.UID = int(h.number)
		}
		if user, err = s.resolve(ctx, h.number, h.by == byIndex); err != nil {
			return r, false, err
		}
	}
	wall, impossible, ok := h.wall()
	if !ok || user == "" && h.by != byText {
		s.env.Log.Debug("punch left to the log: its event does not say enough", "bytes", hex.EncodeToString(h.raw))
		return r, false, nil
	}
	if odd {
		raw.Odd = "user"
	}
	if impossible {
		raw.Odd = "time"
	}
	if raw.Odd != "" {
		raw.Hex = hex.EncodeToString(h.raw)
	}
	key := appendState([]byte(user+"|"+string(wall)), h.state)
	return gatepost.Record{Key: string(key) + "0", Wall: wall, Data: gatepost.Punch{
		User:      user,
		Method:    method(h.verify),
		Direction: direction(h.state),
		Raw:       &raw,
	}}, true, nil
}

// alarm is the detail of an alarm or door event.
type alarm struct {
	Code int    `json:"code"`
	UID  int    `json:"uid,omitempty"` // the terminal's internal number of a person
	Hex  string `json:"hex,omitempty"` // of a form that is not known
}

// decodeAlarm names an alarm: 4 bytes with the code in the first; 8 bytes likewise; 12 bytes of ff ff ff ff, u16 code,
// u16 uid, u32 how the person was known.
func decodeAlarm(b []byte) gatepost.Event {
	switch len(b) {
	case 4, 8:
		a := alarm{Code: int(b[0])}
		switch a.Code {
		case zkproto.AlarmExitButton:
			return gatepost.Event{Name: "door", Message: "exit button", Detail: a}
		case zkproto.AlarmDoorOpen:
			return gatepost.Event{Name: "door", Message: "door opened", Detail: a}
		case zkproto.AlarmDoorClosed, zkproto.AlarmClosing:
			return gatepost.Event{Name: "door", Message: "door closed", Detail: a}
		case zkproto.AlarmDoorForced:
			if len(b) == 8 { // the 2006 manual's number for the frame that others see with 0x54
				return gatepost.Event{Name: "door", Message: "door closed", Detail: a}
			}
			return gatepost.Event{Name: "alarm", Message: "door opened by force", Detail: a}
		case zkproto.AlarmTamper:
			return gatepost.Event{Name: "alarm", Message: "terminal tampered with", Detail: a}
		case zkproto.AlarmMisuse:
			return gatepost.Event{Name: "alarm", Message: "repeated failed attempts", Detail: a}
		}
	case 12:
		a := alarm{Code: int(le.Uint16(b[4:])), UID: int(le.Uint16(b[6:]))}
		switch a.Code {
		case zkproto.AlarmDuress:
			return gatepost.Event{Name: "alarm", Message: "duress", Detail: a}
		case zkproto.AlarmPassback:
			return gatepost.Event{Name: "alarm", Message: "anti-passback", Detail: a}
		}
	}
	return gatepost.Event{Name: "alarm", Message: "unknown alarm", Detail: alarm{Hex: hex.EncodeToString(b)}}
}
