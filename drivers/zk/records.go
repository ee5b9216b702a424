package zk

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"strconv"

	"gatepost"
	"gatepost/drivers/zk/zkproto"
)

// A log record, by length. Firmware has one of them; 49 is the 40-byte form with nine bytes more, which some firmware
// puts in front instead.
//
//	    0         4        8       9        10      12
//	16: | user    | time   | state | verify |   -   | work code |
//	    0     2              26       27       31      32          36
//	40: | uid | user, text   | verify | time   | state | work code |  -  |
const (
	recordSmall = 16
	recordText  = 40
	recordLong  = 49
)

// layout is how the records of a log lie.
type layout struct {
	Size   int  // of one record
	Prefix bool // the extra nine bytes come first
}

// longTail is what the extra nine bytes look like in the dumps we know.
var longTail = [...]byte{0xff, '2', '5', '5', 0, 0, 0, 0, 0}

// Raw is what a punch was decoded from: the terminal's own codes, and where something in the record could not be taken as
// it stands (bytes of the user id, an impossible date), the record itself.
type Raw struct {
	Verify   int    `json:"verify"`
	State    int    `json:"state"`
	WorkCode uint32 `json:"workcode,omitempty"`
	UID      int    `json:"uid,omitempty"` // the terminal's internal number; on some firmware the record's place in the log
	Odd      string `json:"odd,omitempty"` // "user", "time"
	Hex      string `json:"hex,omitempty"`
}

// fact is the parts of a log record.
type fact struct {
	raw  Raw
	user []byte // as bytes, up to the NUL
	time uint32
}

// fact decodes one record of l.Size bytes.
func (l layout) fact(b []byte, digits *[10]byte) fact {
	if l.Size == recordSmall {
		return fact{
			raw:  Raw{State: int(b[8]), Verify: int(b[9]), WorkCode: le.Uint32(b[12:])},
			user: strconv.AppendUint(digits[:0], uint64(le.Uint32(b)), 10),
			time: le.Uint32(b[4:]),
		}
	}
	if l.Prefix {
		b = b[len(longTail):]
	}
	return fact{
		raw:  Raw{UID: int(le.Uint16(b)), Verify: int(b[26]), State: int(b[31]), WorkCode: le.Uint32(b[32:])},
		user: field(b[2:26]),
		time: le.Uint32(b[27:]),
	}
}

// print is a fingerprint of a record: of its meaning, not of the leading uid, which may be the place in the log and
// change when the oldest are dropped.
func (l layout) print(b []byte) uint32 {
	switch {
	case l.Size == recordSmall:
	case l.Prefix:
		b = b[len(longTail)+2 : len(longTail)+36]
	default:
		b = b[2:36]
	}
	h := uint32(2166136261) // FNV-1a
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}

// plausible says whether b looks like a record of this layout.
func (l layout) plausible(b []byte, lastYear int) bool {
	var digits [10]byte
	f := l.fact(b, &digits)
	year, _, _, _, _, _ := unpack(f.time)
	if year > lastYear || f.raw.State > 15 && f.raw.State != zkproto.StateNone || len(f.user) == 0 {
		return false
	}
	for _, c := range f.user {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return l.Size != recordSmall || le.Uint32(b) != 0
}

// score is the percentage of the first records in b that look right.
func (l layout) score(b []byte, lastYear int) int {
	good, n := 0, 0
	for ; len(b) >= l.Size && n < 50; b = b[l.Size:] {
		if l.plausible(b[:l.Size], lastYear) {
			good++
		}
		n++
	}
	if n == 0 {
		return 0
	}
	return 100 * good / n
}

// findLayout finds the layout of a log of total bytes, count records by the terminal's own word (0 or less: not known),
// from its beginning. want is the configured size, 0 for any.
func findLayout(begin []byte, total, count, want, lastYear int) (layout, error) {
	candidates := []layout{{Size: recordText}, {Size: recordLong}, {Size: recordSmall}}
	if len(begin) >= len(longTail) && [9]byte(begin[:9]) == longTail {
		candidates = []layout{{Size: recordLong, Prefix: true}}
	}
	best, score := layout{}, -1
	for _, l := range candidates {
		if want != 0 && l.Size != want || total%l.Size != 0 {
			continue
		}
		n := l.score(begin, lastYear)
		if count > 0 && total == count*l.Size {
			n += 50 // the terminal's own count says so too
		}
		if n > score {
			best, score = l, n
		}
	}
	if want != 0 && score < 0 {
		return best, &gatepost.Fault{
			Class: gatepost.Misconfigured,
			Err:   fmt.Errorf("read the log: %d bytes are no whole number of records of %d", total, want),
			Hint:  "take record_size out of the settings of this terminal",
		}
	}
	// A count that fits is enough; without one, half of the records must make sense.
	if want == 0 && score < 50 {
		err := fmt.Errorf("read the log: %d bytes are not records of 16, 40 or 49; they begin %x", total, begin[:min(64, len(begin))])
		return best, &gatepost.Fault{Err: err, Hint: "set record_size if you know it, and send us this line"}
	}
	return best, nil
}

// method is the word for a verify type.
func method(verify int) gatepost.Method {
	switch verify {
	case zkproto.VerifyPassword, zkproto.VerifyPasswordTFT:
		return gatepost.MethodPIN
	case zkproto.VerifyFinger:
		return gatepost.MethodFinger
	case zkproto.VerifyCard, zkproto.VerifyCardTFT:
		return gatepost.MethodCard
	case zkproto.VerifyFace:
		return gatepost.MethodFace
	case zkproto.VerifyPalm:
		return gatepost.MethodPalm
	}
	return gatepost.MethodOther
}

// direction is the word for a state.
func direction(state int) gatepost.Direction {
	switch state {
	case zkproto.StateCheckIn:
		return gatepost.DirectionIn
	case zkproto.StateCheckOut:
		return gatepost.DirectionOut
	case zkproto.StateBreakOut:
		return gatepost.DirectionBreakOut
	case zkproto.StateBreakIn:
		return gatepost.DirectionBreakIn
	case zkproto.StateOvertimeIn:
		return gatepost.DirectionOvertimeIn
	case zkproto.StateOvertimeOut:
		return gatepost.DirectionOvertimeOut
	}
	return gatepost.DirectionNone
}

// A punch's key is user|wall|state|occurrence. The verify type is not in it, because a live event and the log may differ
// there. The parts are told apart from the right, so a user may hold any character.

// appendState appends the part of a key between wall time and occurrence.
func appendState(b []byte, state int) []byte {
	b = append(b, '|')
	b = strconv.AppendInt(b, int64(state), 10)
	return append(b, '|')
}

// occurrences numbers equal records. Only the last occurrenceWindow records are remembered: equal ones stem from the same
// second, so they lie close together unless the clock was set back by more than that many punches, and memory must not
// grow with the log. A tail read begins early enough to see all of the last known second. Where the clock was set back it
// may still number a record too low; that key is known already, the next full read adds the true one, and nothing is
// stored twice.
type occurrences struct {
	seed  maphash.Seed
	count map[uint64]uint16
	ring  []uint64
	next  int
}

const occurrenceWindow = 1 << 16

func newOccurrences() *occurrences {
	return &occurrences{seed: maphash.MakeSeed(), count: map[uint64]uint16{}}
}

// number is how many records with this key came before it.
func (o *occurrences) number(key []byte) uint16 {
	h := maphash.Bytes(o.seed, key)
	if len(o.ring) < occurrenceWindow {
		o.ring = append(o.ring, h)
	} else {
		old := o.ring[o.next]
		if o.count[old] == 1 {
			delete(o.count, old)
		} else {
			o.count[old]--
		}
		o.ring[o.next] = h
		o.next = (o.next + 1) % occurrenceWindow
	}
	n := o.count[h]
	o.count[h] = n + 1
	return n
}

// decoder makes records of a log that comes in pieces, and emits them in pages.
type decoder struct {
	layout
	enc  encoding
	emit func(rs []gatepost.Record) error

	// What the log ended with when it was last read, as fingerprints; it is looked for where its end would be record
	// number since to until.
	tail  []uint32
	since int
	until int
	found int  // how many records had come when the tail was complete; 0: not yet
	quiet bool // emit only what follows the tail; without it by then, the read ends with errOdd

	seen    int // records so far
	emitted int
	time    uint32        // of the last record
	run     int           // records at the end with that time
	last    [known]uint32 // fingerprints, a ring: record i is at i%known

	carry  []byte // a record cut by a piece's end
	digits [10]byte
	same   *occurrences
	key    []byte
	page   []gatepost.Record
	raws   []Raw // of the page
}

const (
	pageLen = 1000 // records in one emit
	known   = 32   // fingerprints remembered of a log's end
)

// errOdd says that the log's end is not what it was.
var errOdd = errors.New("the log is not the one that was read")

// push takes the next piece of the log.
func (d *decoder) push(p []byte) error {
	if len(d.carry) > 0 {
		n := min(d.Size-len(d.carry), len(p))
		d.carry = append(d.carry, p[:n]...)
		p = p[n:]
		if len(d.carry) < d.Size {
			return nil
		}
		if err := d.record(d.carry); err != nil {
			return err
		}
		d.carry = d.carry[:0]
	}
	for ; len(p) >= d.Size; p = p[d.Size:] {
		if err := d.record(p[:d.Size]); err != nil {
			return err
		}
	}
	d.carry = append(d.carry, p...)
	return nil
}

// record takes one record.
func (d *decoder) record(b []byte) error {
	d.last[d.seen%known] = d.print(b)
	d.seen++
	r := d.decode(b)
	old := d.quiet && d.found == 0
	if d.since <= d.seen && d.seen <= d.until && !(d.quiet && d.found > 0) && d.complete() {
		d.found = d.seen
	}
	if old {
		if d.found == 0 && d.seen >= d.until {
			return errOdd
		}
		return nil
	}
	d.page = append(d.page, r)
	if len(d.page) == pageLen {
		return d.flush()
	}
	return nil
}

// complete says whether the records so far end with the tail.
func (d *decoder) complete() bool {
	if len(d.tail) == 0 || d.seen < len(d.tail) {
		return false
	}
	for i := range d.tail {
		if d.last[(d.seen-1-i)%known] != d.tail[len(d.tail)-1-i] {
			return false
		}
	}
	return true
}

// decode makes a record of bytes. User, wall time and key share an allocation, raw codes one for many records.
func (d *decoder) decode(b []byte) gatepost.Record {
	f := d.fact(b, &d.digits)
	if f.time != d.time {
		d.time, d.run = f.time, 0
	}
	d.run++
	year, month, day, hour, minute, second := unpack(f.time)
	key, odd := d.enc.append(d.key[:0], f.user)
	user := len(key)
	key = append(key, '|')
	key = appendWall(key, year, month, day, hour, minute, second)
	wall := len(key)
	key = appendState(key, f.raw.State)
	d.key = strconv.AppendUint(key, uint64(d.same.number(key)), 10)
	text := string(d.key)
	if odd {
		f.raw.Odd = "user"
	}
	if !realDate(year, month, day) {
		f.raw.Odd = "time"
	}
	if f.raw.Odd != "" {
		f.raw.Hex = hex.EncodeToString(b)
	}
	if len(d.raws) == cap(d.raws) {
		d.raws = make([]Raw, 0, 256) // a new one: who got the last may keep it
	}
	d.raws = append(d.raws, f.raw)
	return gatepost.Record{Key: text, Wall: gatepost.Wall(text[user+1 : wall]), Data: gatepost.Punch{
		User:      text[:user],
		Method:    method(f.raw.Verify),
		Direction: direction(f.raw.State),
		Raw:       &d.raws[len(d.raws)-1],
	}}
}

// flush emits the page.
func (d *decoder) flush() error {
	if len(d.page) == 0 {
		return nil
	}
	if err := d.emit(d.page); err != nil {
		return err
	}
	d.emitted += len(d.page)
	d.page = d.page[:0]
	return nil
}

// prints are the fingerprints of the last records, oldest first.
func (d *decoder) prints() []uint32 {
	n := min(d.seen, known)
	ps := make([]uint32, n)
	for i := range ps {
		ps[i] = d.last[(d.seen-n+i)%known]
	}
	return ps
}
