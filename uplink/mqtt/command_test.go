package mqtt

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"gatepost"
)

func TestParseCommand(t *testing.T) {
	for _, c := range []struct{ in, id, want string }{
		{`{"id":"a","command":"ping"}`, "a", ""},
		{`{"id":"a","command":"ping","args":null,"issued_at":null,"ttl_s":null,"challenge":null}`, "a", ""},
		{`{"id":"a","command":"ping","note":"ignored"}`, "a", ""},
		{`{"command":"ping"}`, "", ""}, // the agent answers it
		{`{"ID":"a","command":"ping"}`, "", ""},
		{`{"id":"a"}`, "a", "command: is missing"},
		{``, "", "not JSON: unexpected end of JSON input at byte 0"},
		{`{"id":"a",`, "", "not JSON: unexpected end of JSON input at byte 10"},
		{`{"id":"a"} x`, "", "not JSON: invalid character 'x' after top-level value at byte 12"},
		{`[]`, "", "not a JSON object"},
		{`"unlock"`, "", "not a JSON object"},
		{`null`, "", "not a JSON object"},
		{`{"id":7,"command":"ping"}`, "", "id: 7 is not a text"},
		{`{"id":"` + strings.Repeat("x", 129) + `","command":"ping"}`, "", "id: longer than 128 bytes"},
		{`{"id":"a","command":["unlock"]}`, "a", `command: ["unlock"] is not a text`},
		{`{"id":"a","command":"unlock","args":[1]}`, "a", "args: [1] is not an object"},
		{`{"id":"a","command":"unlock","args":"` + strings.Repeat("ä", 99) + `"}`, "a", `args: "` + strings.Repeat("ä", 19) + `… is not an object`},
		{`{"id":"a","command":"unlock","issued_at":"yesterday"}`, "a", `issued_at: "yesterday" is neither a time like 2026-11-22T18:00:00Z nor seconds since 1970`},
		{`{"id":"a","command":"unlock","issued_at":1e300}`, "a", "issued_at: 1e300 is neither a time like 2026-11-22T18:00:00Z nor seconds since 1970"},
		{`{"id":"a","command":"unlock","ttl_s":-1}`, "a", "ttl_s: -1 is not a number of seconds above 0"},
		{`{"id":"a","command":"unlock","ttl_s":"10"}`, "a", `ttl_s: "10" is not a number of seconds above 0`},
		{`{"id":"a","command":"unlock","ttl_s":1e18}`, "a", "ttl_s: 1e18 is not a number of seconds above 0"},
		{`{"id":"a","command":"` + strings.Repeat("x", maxCommand) + `"}`, "", "a command may have 65536 bytes, this one has more"},
	} {
		got, err := parseCommand([]byte(c.in))
		text := ""
		if err != nil {
			text = err.Error()
		}
		if got.ID != c.id || text != c.want {
			t.Errorf("%.80s\n got id %q, %s\nwant id %q, %s", c.in, got.ID, text, c.id, c.want)
		}
	}
	for in, want := range map[string]time.Time{
		`"2026-11-22T08:02:03.5+07:00"`: time.Date(2026, 11, 22, 1, 2, 3, 500_000_000, time.UTC),
		`1795309323`:                    time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC),
		`1795309323.5`:                  time.Date(2026, 11, 22, 1, 2, 3, 500_000_000, time.UTC),
	} {
		got, err := parseCommand([]byte(`{"id":"a","command":"unlock","issued_at":` + in + `}`))
		if err != nil || !got.Issued.Equal(want) {
			t.Errorf("issued_at %s: %v, %v, want %v", in, got.Issued, err, want)
		}
	}
}

func FuzzCommand(f *testing.F) {
	for _, s := range []string{
		`{"id":"c1","command":"unlock","args":{"door":1,"seconds":5},"issued_at":"2026-11-22T01:02:03Z","ttl_s":10,"challenge":"x"}`,
		`{"id":"c1","command":"unlock","issued_at":1795309323.25}`, `null`, `{"id":null}`, `[{}]`, `{"args":{}}`, `{"ttl_s":1e-320}`, `{"ttl_s":1e10}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseCommand(b)
		if len(c.ID) > maxID || len(c.Args)+len(c.Verb)+len(c.Challenge) > 3*len(b) || c.TTL < 0 {
			t.Errorf("%+v", c)
		}
		if err != nil {
			if err.Error() == "" || !utf8.ValidString(err.Error()) {
				t.Errorf("error %q", err)
			}
			return
		}
		if c.Verb == "" || c.Args != nil && !json.Valid(c.Args) {
			t.Errorf("accepted: %+v", c)
		}
		// What was understood, written down again, is understood the same way.
		again := map[string]any{"id": c.ID, "command": c.Verb, "challenge": c.Challenge}
		if c.Args != nil {
			again["args"] = c.Args
		}
		if !c.Issued.IsZero() {
			again["issued_at"] = c.Issued
		}
		b, err = json.Marshal(again)
		if err != nil || len(b) > maxCommand {
			return // a year beyond 9999; escapes made it longer
		}
		d, err := parseCommand(b)
		if err != nil || d.ID != c.ID || d.Verb != c.Verb || d.Challenge != c.Challenge || !d.Issued.Equal(c.Issued) {
			t.Errorf("%+v became %+v, %v", c, d, err)
		}
	})
}

var _ gatepost.Link = (*link)(nil)
