package gatepost

import "errors"

// Class says what to do about an error.
type Class uint8

const (
	Temporary     Class = iota // try again soon; what an unmarked error is taken for
	Permanent                  // this message will never pass: park it, go on with the next
	Misconfigured              // a person must change something: say what, try rarely
	Unsupported                // the terminal cannot do this: answer, never retry
)

func (c Class) String() string {
	return [...]string{"temporary", "permanent", "misconfigured", "unsupported"}[c]
}

// Fault gives an error a Class and, for people, a hint.
type Fault struct {
	Class Class
	Hint  string // "the comm key is under Menu > Comm. on the terminal"
	Err   error
}

func (f *Fault) Error() string { return f.Err.Error() }
func (f *Fault) Unwrap() error { return f.Err }

// ClassOf is the Class of the outermost Fault in err; a bare [errors.ErrUnsupported] is Unsupported, all else Temporary,
// so that an error nobody thought about keeps the data and tries again.
func ClassOf(err error) Class {
	if f, ok := errors.AsType[*Fault](err); ok {
		return f.Class
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return Unsupported
	}
	return Temporary
}

// HintOf is the hint of the outermost Fault in err that has one.
func HintOf(err error) string {
	for err != nil {
		f, ok := errors.AsType[*Fault](err)
		if !ok {
			return ""
		}
		if f.Hint != "" {
			return f.Hint
		}
		err = f.Err
	}
	return ""
}

// ErrOutcomeUnknown marks an action that may or may not have happened: its request may have left, but the terminal's
// answer never came. Such an action is never repeated by itself.
var ErrOutcomeUnknown = errors.New("no answer: it may or may not have happened")

// ErrRefused marks an action that the terminal itself refused.
var ErrRefused = errors.New("the terminal refused")

// ErrHungUp marks a connection that the other end closed in order, as terminals do that serve one client at a time.
var ErrHungUp = errors.New("the terminal closed the connection")
