package sqlite

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// crashed is a copy of a store's files as a crash would leave them, with n acknowledged records of which the database holds the first few.
func crashed(t *testing.T, n, committed int) (path string) {
	t.Helper()
	dir := t.TempDir()
	db := openTest(t, filepath.Join(dir, "store.db"))
	if err := db.write(t.Context(), func(txn *txn) error { txn.settleAfter = time.Hour; return nil }); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := db.Journal().Put(t.Context(), fmt.Sprint("r", i), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		if i == committed-1 {
			if _, err := db.Journal().All(t.Context()); err != nil { // who reads has everything committed
				t.Fatal(err)
			}
		}
	}
	return crashedCopy(t, dir)
}

// wantRecords opens the store and wants exactly the first n records in it; then it must go on as if nothing had been.
func wantRecords(t *testing.T, path string, n int) {
	t.Helper()
	for range 2 { // opened again there is nothing left to do
		db, err := Open(t.Context(), Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		all, err := db.Journal().All(t.Context())
		if err != nil || len(all) != n {
			t.Fatalf("%d records, want %d, %v", len(all), n, err)
		}
		for i := range n {
			if got := all[fmt.Sprint("r", i)]; len(got) != 1 || got[0] != byte(i) {
				t.Fatalf("record %d is %v", i, got)
			}
		}
		if err := db.Journal().Put(t.Context(), "r0", []byte{0}); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// records finds where each record of a redo file ends.
func records(t *testing.T, path string) (b []byte, ends []int) {
	t.Helper()
	b, err := os.ReadFile(path + ".redo")
	if err != nil {
		t.Fatal(err)
	}
	at, last := int(redoHeader), int64(0)
	for {
		seq, body, _, ok := nextRecord(b[at:])
		if !ok || last != 0 && seq != last+1 {
			return b, ends
		}
		last = seq
		at += redoPrefix + len(body)
		ends = append(ends, at)
	}
}

func TestRedoAfterACrash(t *testing.T) {
	for _, committed := range []int{0, 1, 40, 99} {
		wantRecords(t, crashed(t, 100, committed), 100)
	}
}

// TestRedoTorn cuts or spoils the file anywhere in its last record, which then was never acknowledged; the records before stand.
func TestRedoTorn(t *testing.T) {
	path := crashed(t, 8, 3)
	whole, ends := records(t, path)
	if len(ends) < 2 {
		t.Fatalf("%d records in the file: the test needs two", len(ends))
	}
	clean := map[string][]byte{}
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		clean[suffix] = b
	}
	begin, end := ends[len(ends)-2], ends[len(ends)-1]
	for at := begin; at < end; at++ {
		for _, spoil := range []func() []byte{
			func() []byte { return whole[:at] },
			func() []byte { b := append([]byte{}, whole...); b[at] ^= 0x40; return b },
		} {
			dir := filepath.Join(t.TempDir(), "store.db")
			for suffix, b := range clean {
				if err := os.WriteFile(dir+suffix, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(dir+".redo", spoil(), 0o600); err != nil {
				t.Fatal(err)
			}
			wantRecords(t, dir, 7)
		}
	}
}

// TestRedoOfAnotherStore has files that do not belong together: what is of another store is not done, and what is of another time is refused.
func TestRedoOfAnotherStore(t *testing.T) {
	path, other := crashed(t, 20, 10), crashed(t, 20, 15)
	b, err := os.ReadFile(other + ".redo")
	if err == nil {
		err = os.WriteFile(path+".redo", b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	wantRecords(t, path, 10)

	path = crashed(t, 20, 10)
	b, ends := records(t, path)
	if err := os.WriteFile(path+".redo", append(b[:redoHeader:redoHeader], b[ends[0]:]...), 0o600); err != nil { // without its first record
		t.Fatal(err)
	}
	_, err = Open(t.Context(), Config{Path: path})
	wantKind(t, err, tartarus.Corrupt)

	binary.LittleEndian.PutUint64(b, 1)
	if err := os.WriteFile(path+".redo", b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), Config{Path: path})
	wantKind(t, err, tartarus.Corrupt)

	if err := os.Remove(path + ".redo"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	wantRecords(t, path, 10) // a copy of the database alone is what it was when it last committed
}

// TestRedoAfterFailure has the disk fail between changes: those that were acknowledged before are still there, those that were not are not, and a
// crash later changes nothing about that.
func TestRedoAfterFailure(t *testing.T) {
	for _, point := range []string{"write", "commit", "sync"} {
		path := filepath.Join(t.TempDir(), "store.db")
		db := openTest(t, path)
		var fail bool
		put := func(id string) error { return db.Journal().Put(t.Context(), id, []byte(id)) }
		set := func(on bool) {
			if err := db.write(t.Context(), func(*txn) error {
				fail = on
				db.fail = func(p string) error {
					if fail && p == point {
						return tartarus.Errorf(tartarus.Unavailable, "disk fails")
					}
					return nil
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 5 {
			if err := put(fmt.Sprint("before", i)); err != nil {
				t.Fatal(err)
			}
			set(true)
			wantKind(t, put(fmt.Sprint("lost", i)), tartarus.Unavailable)
			set(false)
			if err := put(fmt.Sprint("after", i)); err != nil {
				t.Fatal(err)
			}
		}
		all, err := db.Journal().All(t.Context())
		if err != nil || len(all) != 10 {
			t.Errorf("%s: %d records, want 10, %v", point, len(all), err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		again := openTest(t, path)
		if all, err := again.Journal().All(t.Context()); err != nil || len(all) != 10 {
			t.Errorf("%s: %d records after opening again, want 10, %v", point, len(all), err)
		}
	}
}

// TestRedoFills writes more than the file holds, and settles when nobody reads.
func TestRedoFills(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	db := openTest(t, path)
	big := make([]byte, 300<<10)
	for i := range 40 {
		if err := db.Journal().Put(t.Context(), fmt.Sprint(i), big); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path + ".redo"); err != nil || info.Size() > redoFull+3*redoGrow {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
	for deadline := time.Now().Add(30 * time.Second); db.behind.Load(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the database never catches up")
		}
	}
}
