package buffer

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"gatepost"
)

// applicationID marks our files ("GPRB"); schemaVersion is their PRAGMA user_version.
const (
	applicationID = 0x47505242
	schemaVersion = 1
)

// segments is the size of the ring. Records fill one table after the other, so that what is delivered can be given back
// by emptying a whole table, which writes next to nothing; deleting rows writes each page twice.
const segments = 32

// kinds are the first words of the dictionary, in this order, from 1.
var kinds = [...]gatepost.Kind{
	gatepost.KindPunch, gatepost.KindEvent, gatepost.KindTelemetry, gatepost.KindStatus, gatepost.KindResult,
}

// Numbers of the kinds that may be given up when the file is full.
const (
	kindTelemetry = 3
	kindStatus    = 4
)

// columns of a segment table besides id. Times are milliseconds since 1970, durations milliseconds. dev, kind, mark, clock
// and boot are numbers of words. raw is "=" where it is the wall time of time in zone (seconds east), the usual case.
const columns = "rid,dev,kind,time,zone,mark,raw,recv,clock,boot,mono,skew,seen,data"

const columnCount = 15 // with id

// schema makes a new file. It is made in one go and never altered, so that each table's root page is the same in every
// file: damage.go relies on it.
func schema() []string {
	stmts := []string{
		fmt.Sprintf("PRAGMA application_id=%d", applicationID),
		fmt.Sprintf("PRAGMA user_version=%d", schemaVersion),
		"CREATE TABLE state(n INTEGER PRIMARY KEY,v TEXT)",
		"CREATE TABLE word(n INTEGER PRIMARY KEY,w TEXT)",
		"CREATE TABLE seen(src INTEGER,minute INTEGER,hash INTEGER,PRIMARY KEY(src,minute,hash))WITHOUT ROWID",
		"CREATE TABLE parked(n INTEGER PRIMARY KEY,at INTEGER,uplink TEXT,reason TEXT,rec BLOB)",
		"CREATE INDEX parked_uplink ON parked(uplink)",
	}
	for i := range segments {
		stmts = append(stmts, fmt.Sprintf("CREATE TABLE seg%d(id INTEGER PRIMARY KEY,%s)", i, columns))
	}
	for i, k := range kinds {
		stmts = append(stmts, fmt.Sprintf("INSERT INTO word VALUES(%d,'%s')", i+1, k))
	}
	return stmts
}

// state is what the one row of table state holds besides the places: how much is where, so that nothing is ever counted by
// scanning. It is a value: a transaction changes a copy, which takes effect with the commit.
type state struct {
	Next int64 // the number the next record gets; only ever grows
	Seen int64 // rows in seen
	Cur  int   // the segment being filled
	Segs [segments]segment
}

// segment counts one table of the ring.
type segment struct {
	First, Last   int64 // record numbers; both 0 where it is empty
	Newest        int64 // when the last one was received, ms
	Count, Volume [len(kinds)]int64
}

func (g *segment) records() (n int64) {
	for _, c := range g.Count {
		n += c
	}
	return n
}

func (g *segment) bytes() (n int64) {
	for _, v := range g.Volume {
		n += v
	}
	return n
}

func (st *state) records() (n int64) {
	for i := range st.Segs {
		n += st.Segs[i].records()
	}
	return n
}

func (st *state) bytes() (n int64) {
	for i := range st.Segs {
		n += st.Segs[i].bytes()
	}
	return n
}

// oldest is the number of the first record in the file, or Next where there is none.
func (st *state) oldest() int64 {
	first := st.Next
	for i := range st.Segs {
		if g := &st.Segs[i]; g.First > 0 {
			first = min(first, g.First)
		}
	}
	return first
}

// inOrder lists the segments that hold records, oldest first.
func (st *state) inOrder() []int {
	var order []int
	for i := range st.Segs {
		if st.Segs[i].First > 0 {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b int) int { return int(st.Segs[a].First - st.Segs[b].First) })
	return order
}

// within is how many records and bytes lie in (after, upto]. Where a segment is cut the share is by number.
func (st *state) within(after, upto int64) (records, bytes int64) {
	for i := range st.Segs {
		g := &st.Segs[i]
		lo, hi := max(after+1, g.First), min(upto, g.Last)
		if g.First == 0 || lo > hi {
			continue
		}
		part, whole := hi-lo+1, g.Last-g.First+1
		records += max(1, g.records()*part/whole)
		bytes += g.bytes() * part / whole
	}
	return records, bytes
}

// add counts a record into the current segment.
func (st *state) add(id, received int64, kind int, size int64) {
	g := &st.Segs[st.Cur]
	if g.First == 0 {
		g.First = id
	}
	g.Last, g.Newest = id, received
	g.Count[kind]++
	g.Volume[kind] += size
}

// saved is the JSON in table state.
type saved struct {
	Log      string
	Salvaged bool `json:",omitempty"` // carried over from a damaged file: an uplink without a place starts at the oldest
	Next     int64
	Seen     int64
	Cur      int
	Segs     map[int]segment
	Places   map[string]Place
}

// class is the kind's index in a segment's counters; a kind we do not know is kept like an event.
func class(k gatepost.Kind) int {
	if i := slices.Index(kinds[:], k); i >= 0 {
		return i
	}
	return 1
}

// rowOverhead is what a row takes besides its data and text, roughly.
const rowOverhead = 64

func size(r *gatepost.Stored) int64 { return rowOverhead + int64(len(r.Data)) }

// words is the dictionary of a file: devices, sources, kinds and the like, by number. Numbers are for ever.
type words struct {
	number map[string]int64
	text   []string // text[n-1]
}

// of is the number of w, 0 where it has none yet.
func (d *words) of(w string) int64 { return d.number[w] }

func (d *words) add(w string) int64 {
	d.text = append(d.text, w)
	n := int64(len(d.text))
	d.number[w] = n
	return n
}

// cut forgets the words past n: they were not committed.
func (d *words) cut(n int) {
	for _, w := range d.text[n:] {
		delete(d.number, w)
	}
	d.text = d.text[:n:n]
}

// word is the text of word n, empty where n is 0 or unknown.
func word(text []string, n int64) string {
	if n < 1 || n > int64(len(text)) {
		return ""
	}
	return text[n-1]
}

// appendRow appends the values of r's row. number gives the number of a word, nil for the empty one.
func appendRow(args []any, id int64, r *gatepost.Stored, seen bool, number func(string) any) []any {
	var at, zone, raw, mono, skew any
	if !r.Time.IsZero() {
		_, offset := r.Time.Zone()
		at, zone = r.Time.UnixMilli(), int64(offset)
	}
	switch {
	case r.TimeRaw == "":
	case at != nil && r.TimeRaw == string(gatepost.WallOf(r.Time)):
		raw = "="
	case r.TimeRaw[0] == '=':
		raw = "=" + r.TimeRaw
	default:
		raw = r.TimeRaw
	}
	if r.Mono != 0 {
		mono = r.Mono.Milliseconds()
	}
	if r.SkewSet {
		skew = r.Skew.Milliseconds()
	}
	return append(args, id, r.ID[:], number(string(r.Device)), number(string(r.Kind)), at, zone, number(r.TimeMark), raw,
		r.Received.UnixMilli(), number(r.Clock), number(r.Boot), mono, skew, seen, []byte(r.Data))
}

// scanRow reads what appendRow wrote.
func scanRow(rows *sql.Rows, r *gatepost.Stored, text []string) error {
	var rid, data sql.RawBytes
	var dev, kind, at, mark, clock, boot, mono, skew sql.NullInt64
	var zone, recv sql.NullInt64
	var raw sql.NullString
	var seen any
	if err := scan(rows, &r.Seq, &rid, &dev, &kind, &at, &zone, &mark, &raw, &recv, &clock, &boot, &mono, &skew, &seen, &data); err != nil {
		return err
	}
	if len(rid) != len(r.ID) {
		return fmt.Errorf("%w: record %d has an id of %d bytes", errDamaged, r.Seq, len(rid))
	}
	copy(r.ID[:], rid)
	r.Device, r.Kind = gatepost.DeviceID(word(text, dev.Int64)), gatepost.Kind(word(text, kind.Int64))
	if at.Valid {
		r.Time = time.UnixMilli(at.Int64).In(zoneAt(zone.Int64))
	}
	r.TimeMark, r.Clock, r.Boot = word(text, mark.Int64), word(text, clock.Int64), word(text, boot.Int64)
	switch {
	case raw.String == "=":
		r.TimeRaw = string(gatepost.WallOf(r.Time))
	case strings.HasPrefix(raw.String, "="):
		r.TimeRaw = raw.String[1:]
	default:
		r.TimeRaw = raw.String
	}
	r.Received = time.UnixMilli(recv.Int64).UTC()
	r.Mono = time.Duration(mono.Int64) * time.Millisecond
	r.Skew, r.SkewSet = time.Duration(skew.Int64)*time.Millisecond, skew.Valid
	r.Data = append(json.RawMessage(nil), data...)
	return nil
}

// scan is rows.Scan; a column of another type than we ever wrote is damage.
func scan(rows *sql.Rows, into ...any) error {
	if err := rows.Scan(into...); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return nil
}

func zoneAt(seconds int64) *time.Location {
	if seconds == 0 {
		return time.UTC
	}
	return time.FixedZone("", int(seconds))
}
