package gatepost

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

// DeviceID is the installer's name for a terminal: the id in config.yaml.
type DeviceID string

// Record is one fact from a terminal. Once stored it never changes; what is learned later (a corrected time) is added
// when it is sent.
type Record struct {
	Key  string // the terminal's own name for the fact, over its wall time; empty where the source cannot tell it twice
	Wall Wall   // the time as the terminal told it; empty where it told none
	Data Data
}

// Data is what a record says: a [Punch], [Event], [Telemetry], [Status] or [Result]. It is stored as its JSON.
type Data interface{ Kind() Kind }

// Kind is the word for a sort of record, on the wire and in topics.
type Kind string

const (
	KindPunch     Kind = "punch"
	KindEvent     Kind = "event"
	KindTelemetry Kind = "telemetry"
	KindStatus    Kind = "status"
	KindResult    Kind = "result"
)

// Punch is a person showing themselves to a terminal.
type Punch struct {
	User      string    `json:"user"` // as the terminal spells it: "0012" is not "12"
	Card      string    `json:"card,omitempty"`
	Door      int       `json:"door,omitempty"` // from 1; 0 where the terminal names none
	Method    Method    `json:"method"`
	Direction Direction `json:"direction"`
	Outcome   Outcome   `json:"outcome,omitempty"`
	Raw       any       `json:"raw,omitempty"` // the codes it was decoded from, family by family (docs/drivers.md)
}

// Method is how a person identified themselves.
type Method string

const (
	MethodFinger Method = "finger"
	MethodFace   Method = "face"
	MethodCard   Method = "card"
	MethodPIN    Method = "pin"
	MethodPalm   Method = "palm"
	MethodQR     Method = "qr"
	MethodOther  Method = "other"
)

// Direction is what the person told the terminal, or the terminal assumed, about coming and going.
type Direction string

const (
	DirectionIn          Direction = "in"
	DirectionOut         Direction = "out"
	DirectionBreakOut    Direction = "break_out"
	DirectionBreakIn     Direction = "break_in"
	DirectionOvertimeIn  Direction = "overtime_in"
	DirectionOvertimeOut Direction = "overtime_out"
	DirectionNone        Direction = "none"
)

// Outcome says whether a door was granted; empty where no door was decided.
type Outcome string

const (
	OutcomeGranted Outcome = "granted"
	OutcomeDenied  Outcome = "denied"
)

// Event is something that happened at a terminal or to its log, other than a punch. docs/protocol.md lists the names.
type Event struct {
	Name    string `json:"name"`
	Message string `json:"message,omitempty"` // for people
	Detail  any    `json:"detail,omitempty"`
}

// Telemetry is a set of measured values, named with their units ("temperature_c").
type Telemetry struct {
	Values map[string]float64 `json:"values"`
}

// Status is a device's change of state.
type Status struct {
	State  State  `json:"state"`
	Reason string `json:"reason,omitempty"`
	Hint   string `json:"hint,omitempty"` // what the installer should do
}

func (Punch) Kind() Kind     { return KindPunch }
func (Event) Kind() Kind     { return KindEvent }
func (Telemetry) Kind() Kind { return KindTelemetry }
func (Status) Kind() Kind    { return KindStatus }
func (Result) Kind() Kind    { return KindResult }

// ID names a record for ever: the first 128 bits of a SHA-256. Text form: 32 hex digits.
type ID [16]byte

// NewID hashes a record's identity (a terminal's serial number, or "device:" and its id where it refuses to tell one),
// kind and key. The device id and the time zone are not in it, so renaming a terminal or correcting its zone doubles nothing.
func NewID(identity string, kind Kind, key string) ID {
	b := make([]byte, 0, 128)
	b = append(b, identity...)
	b = append(b, 0)
	b = append(b, kind...)
	b = append(b, 0)
	b = append(b, key...)
	sum := sha256.Sum256(b)
	return ID(sum[:16])
}

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText is the 32 hex digits.
func (id ID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText takes the 32 hex digits.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) != 2*len(id) {
		return fmt.Errorf("id %q: want %d hex digits", b, 2*len(id))
	}
	_, err := hex.Decode(id[:], b)
	return err
}

// Clock words: how far the board's own clock could be trusted when a record was received.
const (
	ClockSynced   = "synced"   // the kernel said so
	ClockTrusted  = "trusted"  // agent.clock: trusted
	ClockUnsynced = "unsynced" // Received may be wrong; Boot and Mono tell the order
)

// Stored is a Record as the agent stamped it and the buffer keeps it.
type Stored struct {
	ID       ID
	Log      string   // the incarnation of records.db; Seq means nothing across two of them
	Seq      int64    // from 1, in the order of storing; set by the buffer
	Device   DeviceID // empty: the agent itself
	Kind     Kind
	Time     time.Time // zero where the terminal told none, or an impossible one
	TimeRaw  string    // the wall time as told
	TimeMark string    // "gap" or "repeat" (daylight saving), "invalid" (no such date); else empty
	Received time.Time
	Clock    string        // ClockSynced, ClockTrusted or ClockUnsynced
	Boot     string        // boot id, where unsynced
	Mono     time.Duration // since boot, where unsynced
	Skew     time.Duration // terminal clock minus true time, as last measured
	SkewSet  bool          // false: not measured
	Data     json.RawMessage
}

// AppendJSON appends r as protocol v1 puts it on the wire (docs/protocol.md). Data goes in as it is and must be JSON.
// replay marks a record that waited for a link.
func (r *Stored) AppendJSON(dst []byte, agent string, replay bool) []byte {
	dst = append(dst, `{"v":1,"id":"`...)
	dst = hex.AppendEncode(dst, r.ID[:])
	dst = append(dst, `","log":`...)
	dst = appendString(dst, r.Log)
	dst = append(dst, `,"seq":`...)
	dst = strconv.AppendInt(dst, r.Seq, 10)
	dst = append(dst, `,"agent":`...)
	dst = appendString(dst, agent)
	if r.Device != "" {
		dst = append(dst, `,"device":`...)
		dst = appendString(dst, string(r.Device))
	}
	dst = append(dst, `,"kind":`...)
	dst = appendString(dst, string(r.Kind))
	if !r.Time.IsZero() {
		dst = append(dst, `,"time":"`...)
		dst = r.Time.AppendFormat(dst, time.RFC3339)
		dst = append(dst, '"')
	}
	if r.TimeRaw != "" {
		dst = append(dst, `,"time_raw":`...)
		dst = appendString(dst, r.TimeRaw)
	}
	if r.TimeMark != "" {
		dst = append(dst, `,"time_mark":`...)
		dst = appendString(dst, r.TimeMark)
	}
	dst = append(dst, `,"received":"`...)
	dst = r.Received.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000Z07:00")
	dst = append(dst, `","clock":`...)
	dst = appendString(dst, r.Clock)
	if r.Clock == ClockUnsynced {
		dst = append(dst, `,"boot":`...)
		dst = appendString(dst, r.Boot)
		dst = append(dst, `,"mono_ms":`...)
		dst = strconv.AppendInt(dst, r.Mono.Milliseconds(), 10)
	}
	if r.SkewSet {
		dst = append(dst, `,"skew_ms":`...)
		dst = strconv.AppendInt(dst, r.Skew.Milliseconds(), 10)
	}
	if replay {
		dst = append(dst, `,"replay":true`...)
	}
	dst = append(dst, `,"data":`...)
	dst = append(dst, r.Data...)
	return append(dst, '}')
}

// appendString appends s as a JSON string; plain ASCII, the usual case, without encoding/json's reflection.
func appendString(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			b, _ := json.Marshal(s) // a string always encodes
			return append(dst, b...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}
