package gatepost

import (
	"encoding/json"
	"time"
)

// Command is one request to a device, or to the agent where Device is empty. The same ID twice is answered twice and run
// once; a stale one is refused, because a door must not open for someone who has left.
type Command struct {
	ID        string          `json:"id"`
	Device    DeviceID        `json:"device,omitempty"`
	Verb      string          `json:"command"`
	Args      json.RawMessage `json:"args,omitempty"`
	Issued    time.Time       `json:"issued_at,omitzero"`
	TTL       time.Duration   `json:"-"` // 0: the verb's default
	Challenge string          `json:"challenge,omitempty"`

	Origin   string `json:"-"` // the uplink's id, or "local"
	Local    bool   `json:"-"` // came over a local, authorised connection: fresh on arrival
	Retained bool   `json:"-"` // the broker had kept it: refused
}

// ResultStatus is how far a command got. Exactly one final status is ever given for an ID.
type ResultStatus string

const (
	StatusAccepted    ResultStatus = "accepted"    // not final: it takes over a second
	StatusDone        ResultStatus = "done"        // the terminal confirmed it
	StatusFailed      ResultStatus = "failed"      // the terminal said no, or could not be asked
	StatusRejected    ResultStatus = "rejected"    // not fresh, not understood, or not allowed: nothing was sent to the terminal
	StatusExpired     ResultStatus = "expired"     // came too late: nothing was sent
	StatusUnsupported ResultStatus = "unsupported" // this terminal cannot
	StatusUnavailable ResultStatus = "unavailable" // the terminal is not connected: nothing was sent
	StatusUnknown     ResultStatus = "unknown"     // sent, but no answer came or the agent died in between; never run again
)

// Final says whether no other status will follow.
func (s ResultStatus) Final() bool { return s != StatusAccepted }

// Result answers a Command. It is a record too: buffered and forwarded like a punch.
type Result struct {
	ID     string          `json:"id"`
	Device DeviceID        `json:"device,omitempty"`
	Verb   string          `json:"command"`
	Status ResultStatus    `json:"status"`
	Error  *ResultError    `json:"error,omitempty"`
	Data   json.RawMessage `json:"data,omitempty"`
}

// ResultError says why not. Code is stable, for programs; Message is for people.
type ResultError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}
