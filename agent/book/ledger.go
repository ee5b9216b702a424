package book

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"gatepost"
)

// keepData is how long, in bytes, a result may be that stays whole in the ledger once it is in the record log too. Of a
// longer one the data goes: the same command sent again gets its status only.
const keepData = 16 << 10

// EntryState is how far a command got in the ledger.
type EntryState string

const (
	Started EntryState = "started" // it may have been sent to the terminal
	Final   EntryState = "final"   // its result is known
)

// Entry is a command in the ledger. The arguments of its command are not kept: they may be long, or secret.
type Entry struct {
	Command  gatepost.Command
	Received time.Time
	State    EntryState
	Result   gatepost.Result // where Final
	Finished time.Time       // where Final
	Reported bool            // the result is in the record log
}

// request is a command as the ledger keeps it: with what has no place on the wire, without what need not be kept.
type request struct {
	gatepost.Command
	Args   struct{}      `json:"args,omitzero"` // hides those of Command
	TTL    time.Duration `json:"ttl_ns,omitempty"`
	Origin string        `json:"origin,omitempty"`
	Local  bool          `json:"local,omitempty"`
}

func encodeRequest(c gatepost.Command) (string, error) {
	b, err := json.Marshal(request{Command: c, TTL: c.TTL, Origin: c.Origin, Local: c.Local})
	return string(b), err
}

func decodeRequest(text string) (gatepost.Command, error) {
	var r request
	err := json.Unmarshal([]byte(text), &r)
	r.Command.TTL, r.Command.Origin, r.Command.Local = r.TTL, r.Origin, r.Local
	return r.Command, err
}

// Begin enters c. Where its id is new, the row is on disk when Begin returns nil, and only then may the command go out.
// Else it returns what the ledger has and writes nothing. Of several callers with one id exactly one gets nil. After an
// error nothing may go out: whether the row is there only the next start will know.
func (b *Book) Begin(ctx context.Context, c gatepost.Command, at time.Time) (known *Entry, err error) {
	req, err := encodeRequest(c)
	if err != nil {
		return nil, err
	}
	known, n, err := b.enter(ctx, c.ID, "INSERT INTO command (id, request, received) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
		c.ID, req, millis(at))
	if known != nil || err != nil {
		return known, err
	}
	return nil, b.sync(n)
}

// enter runs an insert into the ledger. Where the id is taken it returns what is there, else the number of the write.
func (b *Book) enter(ctx context.Context, id, insert string, args ...any) (known *Entry, n int64, err error) {
	err = b.do(ctx, func(ctx context.Context, s *store) error {
		rows, err := s.exec(ctx, insert, args...)
		if err != nil {
			return err
		}
		if rows > 0 {
			b.written++
			known, n = nil, b.written
			return nil
		}
		es, err := s.entries(ctx, "WHERE id = ?", id)
		if err != nil {
			return err
		}
		if len(es) == 0 {
			return errTorn
		}
		known = &es[0]
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("ledger: %w", err)
	}
	return known, n, nil
}

// Finish enters the result of a command that was begun. It survives the process at once and the board's power within
// 200 ms. A second result for one id is refused.
func (b *Book) Finish(ctx context.Context, r gatepost.Result, at time.Time) error {
	res, err := encodeResult(r)
	if err != nil {
		return err
	}
	rows, err := b.writeLazily(ctx, "UPDATE command SET result = ?, finished = ? WHERE id = ? AND result IS NULL", res, millis(at), r.ID)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	if rows == 0 {
		return fmt.Errorf("ledger: command %q was not begun, or has its result already", r.ID)
	}
	return nil
}

// FinishNew enters a command together with its result, where nothing was sent for it: rejected, expired, unavailable. It
// is synced like Finish. Where the id is taken it returns what the ledger has and writes nothing.
func (b *Book) FinishNew(ctx context.Context, c gatepost.Command, r gatepost.Result, at time.Time) (known *Entry, err error) {
	req, err := encodeRequest(c)
	if err != nil {
		return nil, err
	}
	res, err := encodeResult(r)
	if err != nil {
		return nil, err
	}
	known, _, err = b.enter(ctx, c.ID, `INSERT INTO command (id, request, received, result, finished) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO NOTHING`, c.ID, req, millis(at), res, millis(at))
	if known == nil && err == nil {
		b.syncSoon()
	}
	return known, err
}

func encodeResult(r gatepost.Result) (string, error) {
	if !r.Status.Final() || r.Status == "" {
		return "", fmt.Errorf("ledger: %q is not a final status", r.Status)
	}
	b, err := json.Marshal(r)
	return string(b), err
}

// Reported notes that the result of command id is in the record log.
func (b *Book) Reported(ctx context.Context, id string) error {
	_, err := b.writeLazily(ctx, `UPDATE command SET reported = 1,
			result = CASE WHEN length(result) > ? THEN json_remove(result, '$.data') ELSE result END
		WHERE id = ? AND result IS NOT NULL AND reported = 0`, keepData, id)
	return err
}

// Command is the ledger's entry of a command id, nil where it has none.
func (b *Book) Command(ctx context.Context, id string) (*Entry, error) {
	var es []Entry
	err := b.do(ctx, func(ctx context.Context, s *store) (err error) {
		es, err = s.entries(ctx, "WHERE id = ?", id)
		return err
	})
	if err != nil || len(es) == 0 {
		return nil, err
	}
	return &es[0], nil
}

// Unfinished lists, oldest first, what a dead predecessor left: commands without a result, and results that are not in
// the record log.
func (b *Book) Unfinished(ctx context.Context) (es []Entry, err error) {
	err = b.do(ctx, func(ctx context.Context, s *store) error {
		es, err = s.entries(ctx, "WHERE reported = 0 ORDER BY n")
		return err
	})
	return es, err
}

func (s *store) entries(ctx context.Context, where string, args ...any) ([]Entry, error) {
	st, err := s.stmt(ctx, "SELECT request, received, result, finished, reported FROM command "+where)
	if err != nil {
		return nil, err
	}
	rows, err := st.QueryContext(ctx, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var es []Entry
	for rows.Next() {
		e := Entry{State: Started}
		var req string
		var res sql.NullString
		var received int64
		var finished sql.NullInt64
		if err := rows.Scan(&req, &received, &res, &finished, &e.Reported); err != nil {
			return nil, err
		}
		if e.Command, err = decodeRequest(req); err != nil {
			return nil, fmt.Errorf("ledger: %w", err)
		}
		e.Received = fromMillis(received)
		if res.Valid {
			e.State, e.Finished = Final, fromMillis(finished.Int64)
			if err := json.Unmarshal([]byte(res.String), &e.Result); err != nil {
				return nil, fmt.Errorf("ledger: command %q: %w", e.Command.ID, err)
			}
		}
		es = append(es, e)
	}
	return es, rows.Err()
}

// prune takes one bite off the old end of the ledger: reported rows past their age, and any row with a result beyond the
// highest count. It says whether there may be more to take.
func (b *Book) prune(ctx context.Context) (more bool, err error) {
	rows, err := b.writeLazily(ctx, `DELETE FROM command WHERE n IN (SELECT n FROM command
		WHERE result IS NOT NULL AND (reported = 1 AND received < ? OR n <= (SELECT max(n) FROM command) - ?) ORDER BY n LIMIT ?)`,
		millis(b.now().Add(-keepFor)), keepRows, pruneBite)
	return rows == pruneBite, err
}
