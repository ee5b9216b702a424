package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// didYouMean is "; did you mean …?" where one of the names is close to what was written.
func didYouMean(written string, names []string) string {
	best, least := "", 3
	slices.Sort(names)
	for _, name := range names {
		d := distance(plain(written), plain(name))
		if d < least && d*2 < max(len(name), len(written)) {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// plain leaves out what people get wrong without thinking.
func plain(s string) string {
	return strings.NewReplacer("_", "", "-", "", " ", "").Replace(strings.ToLower(s))
}

// distance counts the letters to add, drop, change or swap with their neighbour.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return math.MaxInt
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range b {
		rows[0][j+1] = j + 1
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// size is a number of bytes, written with its unit.
type size int64

var sizeUnits = []struct {
	unit  string
	bytes float64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}}

func (s *size) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	for _, u := range sizeUnits {
		number, ok := strings.CutSuffix(strings.ToLower(text), strings.ToLower(u.unit))
		if !ok {
			continue
		}
		if f, err := strconv.ParseFloat(strings.TrimSpace(number), 64); err == nil && f > 0 && f*u.bytes < 1<<60 {
			*s = size(f * u.bytes)
			return nil
		}
	}
	return fmt.Errorf("%s is not a size; write a number with its unit, such as 512MiB or 2GB", quote(text))
}

// span is a duration that may be days.
type span time.Duration

func (s *span) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if f, err := strconv.ParseFloat(days, 64); err == nil && f > 0 && f < 36500 {
			*s = span(f * 24 * float64(time.Hour))
			return nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return fmt.Errorf("%s is not a duration; write a number with its unit, such as 30s, 5m, 1h or 30d", quote(text))
	}
	*s = span(d)
	return nil
}

// threshold is how far a clock may be off: "off", "on" or a duration.
type threshold time.Duration

// minThreshold is what terminals that tell whole seconds can be held to.
const minThreshold = 5 * time.Second

func (t *threshold) UnmarshalText(b []byte) error {
	switch text := strings.TrimSpace(string(b)); strings.ToLower(text) {
	case "off", "false", "no", "never":
		*t = 0
	case "on", "true", "yes":
		*t = threshold(DefaultSyncClock)
	default:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%s is neither on, off nor a duration such as 30s", quote(text))
		}
		if d < minThreshold || d > 24*time.Hour {
			return fmt.Errorf("%s is not between 5s and 24h", text)
		}
		*t = threshold(d)
	}
	return nil
}

// zone is a time zone and its IANA name.
type zone struct {
	name string
	loc  *time.Location
}

func (z *zone) UnmarshalText(b []byte) error {
	name := strings.TrimSpace(string(b))
	loc, err := time.LoadLocation(name)
	if err != nil || name == "" || name == "Local" {
		return fmt.Errorf("%s is not a time zone; write its IANA name, such as Asia/Jakarta or Europe/Berlin", quote(name))
	}
	*z = zone{name, loc}
	return nil
}
