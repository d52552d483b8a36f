package hecatoncheir

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// A guest of which it is not known whether it took on its sandbox's identity has it afterwards, and is not changed once it has.
func TestUnfinishedClaimIsFinished(t *testing.T) {
	client, _ := realGuest(t)
	r := newRig(t)
	spec := r.spec()
	spec.Env, spec.Secrets.AgentToken = map[string]string{"COLOUR": "red"}, "a token"
	h := newHeld(tartarus.Sandbox{Spec: spec})
	h.guest = client.As(spec.Secrets.AgentToken)
	if err := r.agent.confirm(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	env, err := h.guest.Envs(t.Context())
	if err != nil || env["COLOUR"] != "red" || env["E2B_SANDBOX_ID"] != spec.ID {
		t.Fatalf("the guest has %v, %v", env, err)
	}
	if _, err := client.Envs(t.Context()); !tartarus.Is(err, tartarus.Unauthenticated) {
		t.Errorf("without its token: %v", err)
	}

	h.spec.Env = map[string]string{"COLOUR": "blue"}
	if err := r.agent.confirm(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if env, err := h.guest.Envs(t.Context()); err != nil || env["COLOUR"] != "red" {
		t.Errorf("told again, it has %v, %v", env, err)
	}

	other := newHeld(tartarus.Sandbox{Spec: r.spec()})
	other.guest = client.As("another token")
	if err := r.agent.confirm(t.Context(), other); err == nil {
		t.Error("a guest with another token was taken for the sandbox's")
	}
}

func TestSpareConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pair := func() (ours *net.TCPConn, theirs net.Conn) {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err = l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); theirs.Close() })
		return c.(*net.TCPConn), theirs
	}
	// closed waits for the other end of theirs to be closed.
	closed := func(what string, theirs net.Conn) {
		t.Helper()
		_ = theirs.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := theirs.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("%s: it is still open: %v", what, err)
		}
	}
	var c conns
	ours, theirs := pair()
	c.spare(ours)
	got := c.takeSpare()
	if got != net.Conn(ours) {
		t.Fatalf("got %v", got)
	}
	if _, err := io.WriteString(got, "x"); err != nil {
		t.Fatal(err)
	}
	if c.takeSpare() != nil {
		t.Error("it was given away twice")
	}
	_ = theirs.Close()

	ours, theirs = pair()
	c.spare(ours)
	_ = theirs.Close()
	deadline := time.Now().Add(10 * time.Second)
	for silent(ours) && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if c.takeSpare() != nil {
		t.Error("one that the other side has closed was given away")
	}

	ours, theirs = pair()
	c.spare(ours)
	second, theirSecond := pair()
	c.spare(second)
	closed("a second one", theirSecond)
	c.breakAll()
	closed("after the end", theirs)
	ours, theirs = pair()
	c.spare(ours)
	closed("offered after the end", theirs)
	if c.takeSpare() != nil {
		t.Error("it was kept after the end")
	}
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}
