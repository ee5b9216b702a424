package gatepost

import (
	"fmt"
	"time"
)

// Wall is a local wall-clock time as a terminal tells it, without a zone: "2006-01-02T15:04:05". The digits may name a
// date that no calendar has ("2026-02-31T10:00:00"); it is kept all the same.
type Wall string

// NewWall spells a civil time; the parts are not checked against the calendar.
func NewWall(year, month, day, hour, minute, second int) Wall {
	b := make([]byte, 0, 19)
	b = appendDigits(b, year, 4)
	b = append(b, '-')
	b = appendDigits(b, month, 2)
	b = append(b, '-')
	b = appendDigits(b, day, 2)
	b = append(b, 'T')
	b = appendDigits(b, hour, 2)
	b = append(b, ':')
	b = appendDigits(b, minute, 2)
	b = append(b, ':')
	b = appendDigits(b, second, 2)
	return Wall(b)
}

// WallOf is the wall time that t's own location shows.
func WallOf(t time.Time) Wall {
	return NewWall(t.Year(), int(t.Month()), t.Day(), t.Hour(), t.Minute(), t.Second())
}

func appendDigits(b []byte, n, width int) []byte {
	for div := pow10[width-1]; div > 0; div /= 10 {
		b = append(b, byte('0'+n/div%10))
	}
	return b
}

var pow10 = [...]int{1, 10, 100, 1000}

// parts reads the six numbers; ok is false where w has another shape.
func (w Wall) parts() (n [6]int, ok bool) {
	const shape = "dddd-dd-ddTdd:dd:dd"
	if len(w) != len(shape) {
		return n, false
	}
	field := 0
	for i := range len(shape) {
		c := w[i]
		switch {
		case shape[i] != 'd':
			if c != shape[i] {
				return n, false
			}
			field++
		case c < '0' || c > '9':
			return n, false
		default:
			n[field] = n[field]*10 + int(c-'0')
		}
	}
	return n, true
}

// Marks that [Wall.In] may put on an instant.
const (
	MarkGap     = "gap"     // daylight saving skipped this wall time; read with the offset before the change
	MarkRepeat  = "repeat"  // it came twice; the first one is meant
	MarkInvalid = "invalid" // no such date
)

// In makes w an instant in loc. A wall time that daylight saving skips or repeats resolves the same way every time and is
// marked; one that no calendar has gives the zero time and MarkInvalid.
func (w Wall) In(loc *time.Location) (t time.Time, mark string) {
	n, ok := w.parts()
	if !ok {
		return time.Time{}, MarkInvalid
	}
	utc := time.Date(n[0], time.Month(n[1]), n[2], n[3], n[4], n[5], 0, time.UTC)
	if WallOf(utc) != w { // normalised: an impossible date
		return time.Time{}, MarkInvalid
	}
	_, before := utc.Add(-24 * time.Hour).In(loc).Zone()
	_, after := utc.Add(24 * time.Hour).In(loc).Zone()
	first := utc.Add(-time.Duration(before) * time.Second).In(loc)
	if before == after && WallOf(first) == w {
		return first, ""
	}
	second := utc.Add(-time.Duration(after) * time.Second).In(loc)
	firstFits, secondFits := WallOf(first) == w, WallOf(second) == w
	switch {
	case firstFits && secondFits && !first.Equal(second):
		return first, MarkRepeat
	case firstFits:
		return first, ""
	case secondFits:
		return second, ""
	}
	return first, MarkGap
}

// Minute numbers the minutes of a calendar in which every month has 31 days, so that impossible dates have a place too.
// Records are clustered by it where doubles are refused. 0 for a text of another shape.
func (w Wall) Minute() int64 {
	n, ok := w.parts()
	if !ok {
		return 0
	}
	return ((int64(n[0])*12+int64(n[1]))*31+int64(n[2]))*1440 + int64(n[3])*60 + int64(n[4])
}

// MinutesPerDay divides [Wall.Minute] into days.
const MinutesPerDay = 1440

// ParseWall checks the shape and the calendar.
func ParseWall(s string) (Wall, error) {
	if _, mark := Wall(s).In(time.UTC); mark != "" {
		return "", fmt.Errorf("%q is not a time like 2006-01-02T15:04:05", s)
	}
	return Wall(s), nil
}
