package mqtt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"gatepost"
)

const (
	maxCommand = 64 << 10 // bytes
	maxID      = 128      // bytes of a command's id
)

// parseCommand reads a command as docs/protocol.md has it. On an error the command holds what could be read. Names are
// matched exactly; names it does not know are ignored. A missing id is no error here: the agent answers it.
func parseCommand(payload []byte) (gatepost.Command, error) {
	var c gatepost.Command
	if len(payload) > maxCommand {
		return c, fmt.Errorf("a command may have %d bytes, this one has more", maxCommand)
	}
	var fields map[string]json.RawMessage // encoding/json would take "ID" for "id" in a struct
	if err := json.Unmarshal(payload, &fields); err != nil {
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			return c, fmt.Errorf("not JSON: %v at byte %d", syntax, syntax.Offset)
		}
		return c, errors.New("not a JSON object")
	}
	if fields == nil { // the word null
		return c, errors.New("not a JSON object")
	}
	var problem error
	text := func(name string) string {
		raw, ok := fields[name]
		if !ok || isNull(raw) {
			return ""
		}
		var s string
		if json.Unmarshal(raw, &s) != nil && problem == nil {
			problem = fmt.Errorf("%s: %s is not a text", name, clip(raw))
		}
		return s
	}
	// The id comes first, so that an error about the rest can be answered under it.
	if c.ID = text("id"); len(c.ID) > maxID {
		c.ID = ""
		problem = fmt.Errorf("id: longer than %d bytes", maxID)
	}
	c.Verb = text("command")
	if c.Verb == "" && problem == nil {
		problem = errors.New("command: is missing")
	}
	c.Challenge = text("challenge")
	if raw := fields["args"]; len(raw) > 0 && !isNull(raw) {
		if raw[0] != '{' && problem == nil {
			problem = fmt.Errorf("args: %s is not an object", clip(raw))
		} else {
			c.Args = raw
		}
	}
	if raw, ok := fields["issued_at"]; ok && !isNull(raw) {
		t, err := parseInstant(raw)
		if err != nil && problem == nil {
			problem = fmt.Errorf("issued_at: %v", err)
		}
		c.Issued = t
	}
	if raw, ok := fields["ttl_s"]; ok && !isNull(raw) {
		var s float64
		err := json.Unmarshal(raw, &s)
		switch {
		case err == nil && s > 0 && s <= 30*24*3600:
			c.TTL = time.Duration(s * float64(time.Second))
		case problem == nil:
			problem = fmt.Errorf("ttl_s: %s is not a number of seconds above 0", clip(raw))
		}
	}
	return c, problem
}

// parseInstant takes RFC 3339, or seconds since 1970 as a number.
func parseInstant(raw json.RawMessage) (time.Time, error) {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		if t, err := time.Parse(time.RFC3339, s); err == nil {
			return t, nil
		}
	}
	var n float64
	if json.Unmarshal(raw, &n) == nil && n > 0 && n < 1<<33 { // year 2242
		whole, part := math.Modf(n)
		return time.Unix(int64(whole), int64(part*1e9)).UTC(), nil
	}
	return time.Time{}, fmt.Errorf("%s is neither a time like 2026-11-22T18:00:00Z nor seconds since 1970", clip(raw))
}

func isNull(raw json.RawMessage) bool { return bytes.Equal(raw, []byte("null")) }

// clip shortens what is quoted back to a sender.
func clip(raw []byte) string {
	const most = 40
	if len(raw) > most {
		return strings.ToValidUTF8(string(raw[:most]), "") + "…"
	}
	return string(raw)
}
