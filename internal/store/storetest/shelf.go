package storetest

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
)

// Shelf is the suite of shelf.Store.
func Shelf(t *testing.T, open Factory[shelf.Store]) {
	tests := []struct {
		name string
		run  func(*testing.T, Subject[shelf.Store])
	}{
		{"a record comes back whole", recordWhole},
		{"a record is changed from the state that was seen", recordCompared},
		{"of many writers of one state one wins", recordContention},
		{"a shelf is listed by name", recordList},
		{"a removed record begins anew", recordRemoved},
		{"what was acknowledged survives a crash", recordCrash},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, open(t)) })
	}
}

func putRecord(t *testing.T, s shelf.Store, name, body string, expect int64) {
	t.Helper()
	got, err := s.Put(patient(t), "things", name, []byte(body), expect)
	must(t, err)
	if got != expect+1 {
		t.Fatalf("revision is %d, want %d", got, expect+1)
	}
}

func wantRecord(t *testing.T, s shelf.Store, name, body string, revision int64) {
	t.Helper()
	got, err := s.Get(patient(t), "things", name)
	must(t, err)
	if got.Name != name || string(got.Body) != body || got.Revision != revision {
		t.Fatalf("got %q at revision %d, want %q at %d", got.Body, got.Revision, body, revision)
	}
}

func recordWhole(t *testing.T, s Subject[shelf.Store]) {
	body := "a|b\x00\n\xff {}"
	putRecord(t, s.Store, "one", body, 0)
	wantRecord(t, s.Store, "one", body, 1)
	large := string(bytes.Repeat([]byte("x"), 1<<20))
	putRecord(t, s.Store, "large | name", large, 0)
	wantRecord(t, s.Store, "large | name", large, 1)
	_, err := s.Store.Get(patient(t), "things", "two")
	wantKind(t, err, tartarus.NotFound)
	_, err = s.Store.Get(patient(t), "others", "one")
	wantKind(t, err, tartarus.NotFound)
	for _, bad := range [][3]string{{"", "n", "b"}, {"s", "", "b"}, {"s", "n", ""}} {
		_, err := s.Store.Put(patient(t), bad[0], bad[1], []byte(bad[2]), 0)
		wantKind(t, err, tartarus.Invalid)
	}
}

func recordCompared(t *testing.T, s Subject[shelf.Store]) {
	_, err := s.Store.Put(patient(t), "things", "a", []byte("x"), 1)
	wantKind(t, err, tartarus.Conflict)
	putRecord(t, s.Store, "a", "first", 0)
	_, err = s.Store.Put(patient(t), "things", "a", []byte("x"), 0)
	wantKind(t, err, tartarus.Conflict)
	putRecord(t, s.Store, "a", "second", 1)
	_, err = s.Store.Put(patient(t), "things", "a", []byte("x"), 1)
	wantKind(t, err, tartarus.Conflict)
	wantRecord(t, s.Store, "a", "second", 2)
}

func recordContention(t *testing.T, s Subject[shelf.Store]) {
	const writers, rounds = 8, 5
	for round := range int64(rounds) {
		won := make(chan int, writers)
		each(writers, func(i int) {
			switch _, err := s.Store.Put(patient(t), "things", "a", fmt.Append(nil, i), round); {
			case err == nil:
				won <- i
			case !tartarus.Is(err, tartarus.Conflict):
				t.Error(err)
			}
		})
		if len(won) != 1 {
			t.Fatalf("%d writers won", len(won))
		}
		wantRecord(t, s.Store, "a", fmt.Sprint(<-won), round+1)
	}
}

func recordList(t *testing.T, s Subject[shelf.Store]) {
	for _, name := range []string{"b", "a", "é", "B", "a2"} {
		putRecord(t, s.Store, name, "body of "+name, 0)
	}
	_, err := s.Store.Put(patient(t), "others", "c", []byte("x"), 0)
	must(t, err)
	got, err := s.Store.List(patient(t), "things")
	must(t, err)
	var names []string
	for _, r := range got {
		names = append(names, r.Name)
		if string(r.Body) != "body of "+r.Name || r.Revision != 1 {
			t.Errorf("%s is %q at %d", r.Name, r.Body, r.Revision)
		}
	}
	wantSame(t, names, []string{"B", "a", "a2", "b", "é"})
	none, err := s.Store.List(patient(t), "nothing")
	must(t, err)
	if none == nil || len(none) != 0 {
		t.Fatalf("an empty shelf is %v", none)
	}
}

func recordRemoved(t *testing.T, s Subject[shelf.Store]) {
	putRecord(t, s.Store, "a", "x", 0)
	putRecord(t, s.Store, "a", "y", 1)
	must(t, s.Store.Remove(patient(t), "things", "a"))
	must(t, s.Store.Remove(patient(t), "things", "a"))
	_, err := s.Store.Get(patient(t), "things", "a")
	wantKind(t, err, tartarus.NotFound)
	putRecord(t, s.Store, "a", "z", 0)
	wantRecord(t, s.Store, "a", "z", 1)
}

func recordCrash(t *testing.T, s Subject[shelf.Store]) {
	if s.Crash == nil {
		t.Skip("this store outlives its clients")
	}
	putRecord(t, s.Store, "a", "x", 0)
	putRecord(t, s.Store, "a", "y", 1)
	wantRecord(t, s.Crash(t), "a", "y", 2)
}
