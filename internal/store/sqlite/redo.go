package sqlite

import (
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// redo is the file of changes that are acknowledged and not yet committed in the database: their statements, a record for each group, synced before
// anybody is answered. A record is written once and in one piece, where a commit writes every page that it touches; the database then commits for
// many groups together, syncs, and the file begins again from its start. It is read only after a crash or a failed write.
//
//	header   magic, id of the store
//	record   length, CRC-32C of what follows, number, statements
//
// Records are numbered without a gap for the life of the store, and the database knows the last that it holds: which of the file's are
// still to be done, and where they end, is never in doubt.
type redo struct {
	f    *os.File
	id   int64
	seq  int64 // number of the last record that was written, or tried
	at   int64 // end of the records that count
	size int64 // of the file

	fail   func(point string) error
	known  map[string]uint64 // statements whose text stands in the file already
	record []byte            // the next record as far as it is known
	sealed []byte            // the one before it, whose place the next but one takes
}

const (
	redoMagic  = "TARTREDO"
	redoHeader = int64(len(redoMagic) + 8)
	redoPrefix = 16 // of a record: length, checksum, number
	// redoFull is when the database commits: about 700 creates. A longer file would save little, and takes longer to do again.
	redoFull = 4 << 20
	// redoGrow is how much the file is made longer at a time, so that a sync need not write its length as well.
	redoGrow = 1 << 20
	// redoMost bounds a record that is believed: what one group may change, with room to spare.
	redoMost = 1 << 30
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// openRedo opens the file beside the database and has everything that was acknowledged in the database before it returns.
func openRedo(path string, c *conn) (_ *redo, err error) {
	r := &redo{}
	if r.id, err = c.number("SELECT value FROM counters WHERE name = 'redo_id'"); err != nil {
		return nil, err
	}
	if r.f, err = os.OpenFile(path+".redo", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	defer func() {
		if err != nil {
			r.f.Close()
		}
	}()
	var head [redoHeader]byte
	n, err := r.f.ReadAt(head[:], 0)
	switch {
	case err != nil && err != io.EOF:
		return nil, fmt.Errorf("open store: %w", err)
	case int64(n) < redoHeader || head == [redoHeader]byte{}: // new, or a crash was quicker than its first record
		return r, r.begin(path)
	case string(head[:len(redoMagic)]) != redoMagic:
		return nil, tartarus.Errorf(tartarus.Corrupt, "open store %s: its side file %s.redo is damaged", path, path)
	case int64(binary.LittleEndian.Uint64(head[len(redoMagic):])) != r.id: //nolint:gosec // the id is any 64 bits
		return r, r.begin(path) // what lay here before this store did
	}
	if r.size, err = r.f.Seek(0, io.SeekEnd); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return r, r.again(c, r.size)
}

// begin makes the file this store's, with nothing in it.
func (r *redo) begin(path string) error {
	head := binary.LittleEndian.AppendUint64([]byte(redoMagic), uint64(r.id)) //nolint:gosec // likewise
	err := r.f.Truncate(0)
	if err == nil {
		_, err = r.f.WriteAt(head, 0)
	}
	if err == nil {
		err = r.f.Chmod(0o600)
	}
	if err == nil {
		err = r.f.Sync()
	}
	if err == nil {
		var dir *os.File
		if dir, err = os.Open(filepath.Dir(path)); err == nil {
			err = errors.Join(dir.Sync(), dir.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	r.size = redoHeader
	r.reset()
	return nil
}

// reset begins again from the start of the file: the database holds everything.
func (r *redo) reset() { r.at, r.known, r.record = redoHeader, map[string]uint64{}, r.record[:0] }

// empty reports whether the database holds everything.
func (r *redo) empty() bool { return r.at == redoHeader }

func (r *redo) full() bool { return r.at >= redoFull }

// add appends a statement to the next record.
func (r *redo) add(q string, args []driver.Value) error {
	if len(r.record) == 0 {
		r.record = append(r.record, make([]byte, redoPrefix)...)
	}
	i, ok := r.known[q]
	if !ok {
		i = uint64(len(r.known))
		r.known[q] = i
	}
	b := binary.AppendUvarint(r.record, i)
	if !ok {
		b = binary.AppendUvarint(b, uint64(len(q)))
		b = append(b, q...)
	}
	b = binary.AppendUvarint(b, uint64(len(args)))
	for _, a := range args {
		switch v := a.(type) {
		case nil:
			b = append(b, 'n')
		case int64:
			b = binary.AppendVarint(append(b, 'i'), v)
		case string:
			b = append(binary.AppendUvarint(append(b, 's'), uint64(len(v))), v...)
		case []byte:
			if v == nil {
				b = append(b, 'z')
				continue
			}
			b = append(binary.AppendUvarint(append(b, 'b'), uint64(len(v))), v...)
		default:
			return tartarus.Errorf(tartarus.Internal, "store: a statement has an argument of type %T", a)
		}
	}
	r.record = b
	return nil
}

// seal ends the record, which write then takes. What is added from here on is the next one's. Should it not become durable its number is not used
// again: whatever of it is in the file counts for nothing once the database has taken note.
func (r *redo) seal() ([]byte, error) {
	b := r.record
	if len(b) > redoMost {
		return nil, tartarus.Errorf(tartarus.Exhausted, "store: a change of %d bytes is too large", len(b))
	}
	r.seq++
	binary.LittleEndian.PutUint64(b[8:], uint64(r.seq)) //nolint:gosec // never negative
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	binary.LittleEndian.PutUint32(b, uint32(len(b))) //nolint:gosec // redoMost
	r.record, r.sealed = r.sealed[:0], b
	return b, nil
}

// write makes a sealed record durable. It may run beside add, and beside nothing else.
func (r *redo) write(b []byte) error {
	end := r.at + int64(len(b))
	if end > r.size {
		size := (end/redoGrow + 1) * redoGrow
		err := unix.Fallocate(int(r.f.Fd()), 0, 0, size)
		switch {
		case err == nil:
			if err = r.f.Sync(); err != nil {
				return redoError(err)
			}
			r.size = size
		case !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS):
			return redoError(err)
		}
	}
	if _, err := r.f.WriteAt(b, r.at); err != nil {
		return redoError(err)
	}
	if err := r.fail("sync"); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(r.f.Fd())); err != nil {
		return redoError(err)
	}
	r.at, r.size = end, max(r.size, end)
	return nil
}

func redoError(err error) error {
	return tartarus.Errorf(tartarus.Unavailable, "store does not work: %w", err)
}

// again does everything in the first bytes of the file that the database does not hold, and has it committed and the file begin anew. What follows
// the last whole record was never acknowledged.
func (r *redo) again(c *conn, limit int64) (err error) {
	done, err := c.number("SELECT value FROM counters WHERE name = 'redo'")
	if err != nil {
		return err
	}
	file := make([]byte, max(0, limit-redoHeader))
	if _, err := r.f.ReadAt(file, redoHeader); err != nil {
		return redoError(err)
	}
	open := false
	defer func() {
		if open {
			_, e := c.exec("ROLLBACK")
			err = errors.Join(err, e)
		}
	}()
	last, p := int64(0), player{c: c}
	for {
		seq, body, rest, ok := nextRecord(file)
		if !ok || last != 0 && seq != last+1 {
			break
		}
		if last == 0 && seq > done+1 {
			return tartarus.Errorf(tartarus.Corrupt, "the side file goes on at change %d and the database ends at %d: they are not of the same time", seq, done)
		}
		if seq > done && !open {
			if _, err := c.exec("BEGIN IMMEDIATE"); err != nil {
				return err
			}
			open = true
		}
		if err := p.play(body, seq > done); err != nil {
			return fmt.Errorf("do change %d again: %w", seq, err)
		}
		last, file = seq, rest
	}
	r.seq = max(r.seq, done, last)
	if r.seq > done && !open {
		if _, err := c.exec("BEGIN IMMEDIATE"); err != nil {
			return err
		}
		open = true
	}
	if open {
		if err := r.settle(c, r.seq > done); err != nil {
			return err
		}
		open = false
	}
	r.reset()
	return nil
}

// settle commits what the database has done, which is everything up to the newest record, and takes note of its number where that is news.
func (r *redo) settle(c *conn, note bool) error {
	if note {
		if _, err := c.exec("UPDATE counters SET value = ? WHERE name = 'redo'", r.seq); err != nil {
			return err
		}
	}
	_, err := c.exec("COMMIT")
	return err
}

// nextRecord takes the first record off b, if there is a whole one.
func nextRecord(b []byte) (seq int64, body, rest []byte, ok bool) {
	if len(b) < redoPrefix {
		return 0, nil, nil, false
	}
	n := int(binary.LittleEndian.Uint32(b))
	if n < redoPrefix || n > len(b) || crc32.Checksum(b[8:n], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return 0, nil, nil, false
	}
	seq = int64(binary.LittleEndian.Uint64(b[8:])) //nolint:gosec // written as such
	return seq, b[redoPrefix:n], b[n:], seq > 0
}

// player does the statements of records again.
type player struct {
	c     *conn
	texts []string
	b     []byte
	err   error
}

var errRecord = tartarus.Errorf(tartarus.Corrupt, "the record is whole and makes no sense")

// play reads one record's statements and does them, where they are still to be done.
func (p *player) play(body []byte, do bool) error {
	p.b = body
	for len(p.b) > 0 && p.err == nil {
		i := p.uvarint()
		if i == uint64(len(p.texts)) {
			p.texts = append(p.texts, string(p.bytes(p.uvarint())))
		}
		if i >= uint64(len(p.texts)) {
			return errRecord
		}
		n := p.uvarint()
		if n > uint64(len(p.b)) { // each takes a byte at least
			return errRecord
		}
		args := make([]any, 0, n)
		for range n {
			args = append(args, p.arg())
		}
		if p.err == nil && do {
			if _, err := p.c.exec(p.texts[i], args...); err != nil {
				return err
			}
		}
	}
	return p.err
}

func (p *player) uvarint() uint64 {
	n, size := binary.Uvarint(p.b)
	if size <= 0 {
		p.err, p.b = errRecord, nil
		return 0
	}
	p.b = p.b[size:]
	return n
}

func (p *player) bytes(n uint64) []byte {
	if n > uint64(len(p.b)) {
		p.err, p.b = errRecord, nil
		return nil
	}
	b := p.b[:n:n]
	p.b = p.b[n:]
	return b
}

func (p *player) arg() any {
	kind := p.bytes(1)
	if len(kind) == 0 {
		return nil
	}
	switch kind[0] {
	case 'n':
	case 'i':
		n, size := binary.Varint(p.b)
		if size <= 0 {
			p.err, p.b = errRecord, nil
			return nil
		}
		p.b = p.b[size:]
		return n
	case 's':
		return string(p.bytes(p.uvarint()))
	case 'b':
		return p.bytes(p.uvarint())
	case 'z':
		return []byte(nil)
	default:
		p.err, p.b = errRecord, nil
	}
	return nil
}
