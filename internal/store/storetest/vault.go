package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/link"
)

// Vault is the suite of link.Vault.
func Vault(t *testing.T, open Factory[link.Vault]) {
	tests := []struct {
		name string
		run  func(*testing.T, Subject[link.Vault])
	}{
		{"a value comes back whole", valueWhole},
		{"a name is created once", valueOnce},
		{"of many creators one wins", valueContention},
		{"a value's time ends", valueEnds},
		{"values are listed by prefix", valueList},
		{"what was acknowledged survives a crash", valueCrash},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, open(t)) })
	}
}

func wantValue(t *testing.T, v link.Vault, name, want string) {
	t.Helper()
	got, err := v.Get(patient(t), name)
	must(t, err)
	if string(got) != want {
		t.Fatalf("%s is %q, want %q", name, got, want)
	}
}

func valueWhole(t *testing.T, s Subject[link.Vault]) {
	for name, value := range map[string]string{"a": "x", "empty": "", "bytes/1": "\x00\xff\n", "long": fmt.Sprintf("%100000d", 7)} {
		must(t, s.Store.Set(patient(t), name, []byte(value), 0))
		wantValue(t, s.Store, name, value)
	}
	must(t, s.Store.Set(patient(t), "a", []byte("y"), time.Hour))
	wantValue(t, s.Store, "a", "y")
	_, err := s.Store.Get(patient(t), "never")
	wantKind(t, err, tartarus.NotFound)
}

func valueOnce(t *testing.T, s Subject[link.Vault]) {
	must(t, s.Store.Create(patient(t), "a", []byte("first"), 0))
	wantKind(t, s.Store.Create(patient(t), "a", []byte("second"), 0), tartarus.Conflict)
	wantValue(t, s.Store, "a", "first")
}

func valueContention(t *testing.T, s Subject[link.Vault]) {
	const n = 16
	won := make(chan string, n)
	each(n, func(i int) {
		switch err := s.Store.Create(patient(t), "a", fmt.Appendf(nil, "%d", i), time.Hour); {
		case err == nil:
			won <- fmt.Sprint(i)
		case !tartarus.Is(err, tartarus.Conflict):
			t.Error(err)
		}
	})
	if len(won) != 1 {
		t.Fatalf("%d creators won", len(won))
	}
	wantValue(t, s.Store, "a", <-won)
}

func valueEnds(t *testing.T, s Subject[link.Vault]) {
	must(t, s.Store.Create(patient(t), "short", []byte("x"), 50*time.Millisecond))
	must(t, s.Store.Create(patient(t), "good", []byte("x"), time.Hour))
	eventually(t, func() error {
		if _, err := s.Store.Get(patient(t), "short"); !tartarus.Is(err, tartarus.NotFound) {
			return errors.Join(errors.New("it is still there"), err)
		}
		return nil
	})
	must(t, s.Store.Create(patient(t), "short", []byte("again"), 0))
	wantValue(t, s.Store, "short", "again")
	wantValue(t, s.Store, "good", "x")
}

func valueList(t *testing.T, s Subject[link.Vault]) {
	for _, name := range []string{"a/1", "a/2", "a0", "b/1", "a"} {
		must(t, s.Store.Set(patient(t), name, []byte(name), 0))
	}
	must(t, s.Store.Set(patient(t), "a/3", []byte("over"), 30*time.Millisecond))
	eventually(t, func() error {
		got, err := s.Store.List(patient(t), "a/")
		must(t, err)
		if len(got) != 2 || string(got["a/1"]) != "a/1" || string(got["a/2"]) != "a/2" {
			return fmt.Errorf("listed %q", got)
		}
		return nil
	})
	all, err := s.Store.List(patient(t), "")
	must(t, err)
	if len(all) != 5 {
		t.Fatalf("listed %q", all)
	}
}

func valueCrash(t *testing.T, s Subject[link.Vault]) {
	if s.Crash == nil {
		t.Skip("this subject cannot crash")
	}
	must(t, s.Store.Create(patient(t), "a", []byte("x"), 0))
	after := s.Crash(t)
	wantValue(t, after, "a", "x")
	wantKind(t, after.Create(patient(t), "a", []byte("y"), 0), tartarus.Conflict)
}

// eventually repeats check until it is content.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatal(err)
}
