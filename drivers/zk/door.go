package zk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gatepost"
	"gatepost/drivers/zk/zkproto"
)

// maxHold is the longest time an unlock can name, in the terminal's units: it is a byte in most firmware.
const maxHold = 254

// Unlock opens the door. Whether the number counts tenths of a second or seconds differs between firmwares and is a
// setting. An unlock whose answer stays out ends the link, so that no copy of it reaches the terminal later.
func (s *session) Unlock(ctx context.Context, door int, hold time.Duration) error {
	what := fmt.Sprintf("unlock door %d", door)
	if door < 1 || door > s.Doors {
		return &gatepost.Fault{Class: gatepost.Permanent, Err: fmt.Errorf("%s: this terminal has %s", what, plural(s.Doors, "door"))}
	}
	if longest := maxHold * s.unit; hold <= 0 || hold > longest {
		return &gatepost.Fault{Class: gatepost.Permanent, Err: fmt.Errorf("%s for %v: the terminal takes up to %v", what, hold, longest)}
	}
	units := (hold + s.unit - 1) / s.unit
	_, err := s.l.do(ctx, urgent, what, zkproto.CmdUnlock, le.AppendUint32(nil, uint32(units)))
	if err == nil {
		return nil
	}
	if _, answered := errors.AsType[replyError](err); answered {
		return err
	}
	if a, ok := errors.AsType[*askError](err); ok && !a.sent {
		return err
	}
	s.l.fail(errors.New("the link was ended after an unlock without an answer"))
	return fmt.Errorf("%w: %w", gatepost.ErrOutcomeUnknown, err)
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
