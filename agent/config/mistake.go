package config

import (
	"fmt"
	"slices"
	"strings"
)

// Mistake is something in the file that a person must change.
type Mistake struct {
	File      string
	Line, Col int // from 1; 0 where the mistake is nowhere in particular
	Text      string
}

// Mistakes is all that is wrong with a file, in line order.
type Mistakes []Mistake

// Error prints one mistake a line, as compilers do.
func (ms Mistakes) Error() string {
	places, width := make([]string, len(ms)), 0
	for i, m := range ms {
		places[i] = m.place()
		width = max(width, len(places[i]))
	}
	lines := make([]string, len(ms))
	for i, m := range ms {
		lines[i] = fmt.Sprintf("%-*s %s", width, places[i], m.Text)
	}
	return strings.Join(lines, "\n")
}

func (m Mistake) place() string {
	if m.Line == 0 {
		return m.File + ":"
	}
	return fmt.Sprintf("%s:%d:%d:", m.File, m.Line, m.Col)
}

func (m Mistake) String() string { return m.place() + " " + m.Text }

func (ms Mistakes) sort() {
	slices.SortStableFunc(ms, func(a, b Mistake) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Col - b.Col
	})
}
