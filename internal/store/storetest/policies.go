package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// Policies is the suite of themis.Store.
func Policies(t *testing.T, open Factory[themis.Store]) {
	tests := []struct {
		name string
		run  func(*testing.T, Subject[themis.Store])
	}{
		{"versions count from one and all stay", policyVersions},
		{"another current version is a conflict", policyConflict},
		{"of many writers of a version one wins", policyContention},
		{"a removed document keeps its past", policyRemoved},
		{"current versions are listed by name", policyList},
		{"the revision grows with every change", policyRevision},
		{"a document needs a name and a body", policyInvalid},
		{"what was acknowledged survives a crash", policyCrash},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, open(t)) })
	}
}

func putPolicy(t *testing.T, s themis.Store, name, body string, expect int64) themis.Document {
	t.Helper()
	d, err := s.Put(patient(t), name, []byte(body), "key-1", expect)
	must(t, err)
	return d
}

func policyVersions(t *testing.T, s Subject[themis.Store]) {
	ctx := patient(t)
	var put []themis.Document
	for i := range 5 {
		d := putPolicy(t, s.Store, "base", fmt.Sprintf("body\x00%d", i), int64(i))
		if d.Name != "base" || d.Version != int64(i+1) || string(d.Body) != fmt.Sprintf("body\x00%d", i) || d.Author != "key-1" || d.Removed {
			t.Fatalf("stored %+v", d)
		}
		if age := time.Since(d.CreatedAt); age > patience || age < -patience {
			t.Fatalf("created at %s", d.CreatedAt)
		}
		put = append(put, d)
	}
	for _, d := range put {
		got, err := s.Store.Get(ctx, "base", d.Version)
		must(t, err)
		wantSame(t, got, d)
	}
	got, err := s.Store.Get(ctx, "base", 0)
	must(t, err)
	wantSame(t, got, put[4])
	history, err := s.Store.History(ctx, "base")
	must(t, err)
	wantSame(t, history, []themis.Document{put[4], put[3], put[2], put[1], put[0]})
	for _, version := range []int64{6, -1} {
		_, err = s.Store.Get(ctx, "base", version)
		wantKind(t, err, tartarus.NotFound)
	}
	_, err = s.Store.Get(ctx, "other", 0)
	wantKind(t, err, tartarus.NotFound)
	_, err = s.Store.History(ctx, "other")
	wantKind(t, err, tartarus.NotFound)
}

func policyConflict(t *testing.T, s Subject[themis.Store]) {
	ctx := patient(t)
	_, err := s.Store.Put(ctx, "p", []byte("x"), "", 1)
	wantKind(t, err, tartarus.Conflict)
	wantKind(t, s.Store.Remove(ctx, "p", "", 0), tartarus.NotFound)
	putPolicy(t, s.Store, "p", "1", 0)
	putPolicy(t, s.Store, "p", "2", 1)
	for _, expect := range []int64{0, 1, 3} {
		_, err = s.Store.Put(ctx, "p", []byte("x"), "", expect)
		wantKind(t, err, tartarus.Conflict)
		wantKind(t, s.Store.Remove(ctx, "p", "", expect), tartarus.Conflict)
	}
	got, err := s.Store.Get(ctx, "p", 0)
	must(t, err)
	if got.Version != 2 || string(got.Body) != "2" {
		t.Fatalf("after refused changes: %+v", got)
	}
}

func policyContention(t *testing.T, s Subject[themis.Store]) {
	const writers, rounds = 12, 5
	for round := range rounds {
		won := make(chan themis.Document, writers)
		each(writers, func(i int) {
			d, err := s.Store.Put(patient(t), "p", []byte(fmt.Sprint(i)), "", int64(round))
			switch {
			case err == nil:
				won <- d
			case !tartarus.Is(err, tartarus.Conflict):
				t.Error(err)
			}
		})
		if len(won) != 1 {
			t.Fatalf("%d writers won", len(won))
		}
		got, err := s.Store.Get(patient(t), "p", 0)
		must(t, err)
		wantSame(t, got, <-won)
	}
}

func policyRemoved(t *testing.T, s Subject[themis.Store]) {
	ctx := patient(t)
	first := putPolicy(t, s.Store, "p", "1", 0)
	must(t, s.Store.Remove(ctx, "p", "key-2", 1))
	for _, version := range []int64{0, 2} {
		_, err := s.Store.Get(ctx, "p", version)
		wantKind(t, err, tartarus.NotFound)
	}
	got, err := s.Store.Get(ctx, "p", 1)
	must(t, err)
	wantSame(t, got, first)
	list, err := s.Store.List(ctx)
	must(t, err)
	if len(list) != 0 {
		t.Fatalf("still listed: %+v", list)
	}
	history, err := s.Store.History(ctx, "p")
	must(t, err)
	if len(history) != 2 || !history[0].Removed || history[0].Version != 2 || history[0].Author != "key-2" || len(history[0].Body) != 0 || history[1].Removed {
		t.Fatalf("history: %+v", history)
	}
	for _, expect := range []int64{0, 2} {
		wantKind(t, s.Store.Remove(ctx, "p", "", expect), tartarus.NotFound)
	}
	_, err = s.Store.Put(ctx, "p", []byte("x"), "", 2)
	wantKind(t, err, tartarus.Conflict)
	if d := putPolicy(t, s.Store, "p", "3", 0); d.Version != 3 {
		t.Fatalf("a version was used twice: %+v", d)
	}
}

func policyList(t *testing.T, s Subject[themis.Store]) {
	list, err := s.Store.List(patient(t))
	must(t, err)
	if len(list) != 0 {
		t.Fatalf("an empty store lists %+v", list)
	}
	b := putPolicy(t, s.Store, "b", "1", 0)
	putPolicy(t, s.Store, "c", "1", 0)
	a := putPolicy(t, s.Store, "a", "1", 0)
	c := putPolicy(t, s.Store, "c", "2", 1)
	putPolicy(t, s.Store, "d", "1", 0)
	must(t, s.Store.Remove(patient(t), "d", "", 1))
	list, err = s.Store.List(patient(t))
	must(t, err)
	wantSame(t, list, []themis.Document{a, b, c})
}

func policyRevision(t *testing.T, s Subject[themis.Store]) {
	ctx := patient(t)
	last, err := s.Store.Revision(ctx)
	must(t, err)
	grows := func(what string, more bool) {
		t.Helper()
		now, err := s.Store.Revision(ctx)
		must(t, err)
		if now < last || (now > last) != more {
			t.Fatalf("%s took the revision from %d to %d", what, last, now)
		}
		last = now
	}
	putPolicy(t, s.Store, "a", "1", 0)
	grows("a first version", true)
	putPolicy(t, s.Store, "a", "1", 1)
	grows("an equal body", true)
	putPolicy(t, s.Store, "b", "1", 0)
	grows("another document", true)
	_, err = s.Store.Put(ctx, "b", []byte("x"), "", 7)
	wantKind(t, err, tartarus.Conflict)
	grows("a refused change", false)
	must(t, s.Store.Remove(ctx, "a", "", 2))
	grows("a removal", true)
}

func policyInvalid(t *testing.T, s Subject[themis.Store]) {
	_, err := s.Store.Put(patient(t), "", []byte("x"), "", 0)
	wantKind(t, err, tartarus.Invalid)
	_, err = s.Store.Put(patient(t), "p", nil, "", 0)
	wantKind(t, err, tartarus.Invalid)
}

func policyCrash(t *testing.T, s Subject[themis.Store]) {
	if s.Crash == nil {
		t.Skip("this store outlives its clients")
	}
	each(20, func(i int) {
		name := fmt.Sprint("p", i)
		for v := range int64(3) {
			if _, err := s.Store.Put(patient(t), name, []byte{byte(v)}, "", v); err != nil {
				t.Error(err)
			}
		}
	})
	before, err := s.Store.Revision(patient(t))
	must(t, err)
	again := s.Crash(t)
	for i := range 20 {
		d, err := again.Get(patient(t), fmt.Sprint("p", i), 0)
		must(t, err)
		if d.Version != 3 || len(d.Body) != 1 || d.Body[0] != 2 {
			t.Fatalf("%+v", d)
		}
	}
	after, err := again.Revision(patient(t))
	must(t, err)
	if after != before {
		t.Fatalf("revision went from %d to %d", before, after)
	}
}
