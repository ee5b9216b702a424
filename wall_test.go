package gatepost

import (
	"testing"
	"time"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func TestWallIn(t *testing.T) {
	for _, c := range []struct {
		wall Wall
		zone string
		want string // RFC 3339
		mark string
	}{
		{"2026-11-22T08:30:15", "Asia/Jakarta", "2026-11-22T08:30:15+07:00", ""},
		{"2026-11-22T08:30:15", "UTC", "2026-11-22T08:30:15Z", ""},
		{"2024-02-29T12:00:00", "Europe/Berlin", "2024-02-29T12:00:00+01:00", ""},
		// Berlin, spring: 02:00 to 03:00 does not exist.
		{"2026-03-29T01:59:59", "Europe/Berlin", "2026-03-29T01:59:59+01:00", ""},
		{"2026-03-29T02:30:00", "Europe/Berlin", "2026-03-29T03:30:00+02:00", MarkGap},
		{"2026-03-29T03:00:00", "Europe/Berlin", "2026-03-29T03:00:00+02:00", ""},
		// Autumn: 02:00 to 03:00 comes twice.
		{"2026-10-25T01:59:59", "Europe/Berlin", "2026-10-25T01:59:59+02:00", ""},
		{"2026-10-25T02:30:00", "Europe/Berlin", "2026-10-25T02:30:00+02:00", MarkRepeat},
		{"2026-10-25T03:00:00", "Europe/Berlin", "2026-10-25T03:00:00+01:00", ""},
		// West of Greenwich, and a half-hour change.
		{"2026-03-08T02:30:00", "America/New_York", "2026-03-08T03:30:00-04:00", MarkGap},
		{"2026-11-01T01:30:00", "America/New_York", "2026-11-01T01:30:00-04:00", MarkRepeat},
		{"2026-10-04T02:15:00", "Australia/Lord_Howe", "2026-10-04T02:45:00+11:00", MarkGap},
		{"2026-02-29T23:59:58", "UTC", "", MarkInvalid},
		{"2026-04-31T00:00:00", "UTC", "", MarkInvalid},
		{"2026-01-01 00:00:00", "UTC", "", MarkInvalid},
		{"", "UTC", "", MarkInvalid},
	} {
		at, mark := c.wall.In(zone(t, c.zone))
		got := ""
		if !at.IsZero() {
			got = at.Format(time.RFC3339)
		}
		if got != c.want || mark != c.mark {
			t.Errorf("%s in %s: %s %q, want %s %q", c.wall, c.zone, got, mark, c.want, c.mark)
		}
	}
}

func TestWallMinuteOrdersImpossibleDatesToo(t *testing.T) {
	ws := []Wall{"2000-01-01T00:00:00", "2026-02-28T23:59:59", "2026-02-31T00:00:00", "2026-03-01T00:00:00", "2026-03-01T00:01:00", "2133-08-18T06:28:15"}
	for i := 1; i < len(ws); i++ {
		if ws[i-1].Minute() >= ws[i].Minute() {
			t.Errorf("%s is not before %s", ws[i-1], ws[i])
		}
	}
}

// FuzzWall: no text panics; one that is a date comes back the same from the instant it names.
func FuzzWall(f *testing.F) {
	f.Add("2026-03-29T02:30:00")
	f.Add("2026-02-31T10:00:00")
	f.Add("0000-00-00T00:00:00")
	f.Add("9999-99-99T99:99:99")
	loc := zone(f, "Europe/Berlin")
	f.Fuzz(func(t *testing.T, s string) {
		w := Wall(s)
		w.Minute()
		at, mark := w.In(loc)
		if (mark == "" || mark == MarkRepeat) && WallOf(at) != w {
			t.Errorf("%q became %s", s, at)
		}
		if mark == MarkInvalid && !at.IsZero() {
			t.Errorf("%q is invalid and became %s", s, at)
		}
	})
}
