package kvm

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// How long a verdict is believed. A host that was judged at a bad moment gets another chance soon; one that is good stays so until it boots
// again, or its device changes.
const (
	keepGood = 24 * time.Hour
	keepBad  = 10 * time.Minute
)

// remembered is a verdict with what it holds for.
type remembered struct {
	Verdict Verdict   `json:"verdict"`
	Boot    string    `json:"boot"`
	Device  string    `json:"device"` // mode and time of change of the device node
	At      time.Time `json:"at"`
}

// Remembered is Judge with a memory in the file path: judging takes half a second, which a program that runs one sandbox should not spend
// each time. Where the file cannot be read or written, it judges.
func Remembered(ctx context.Context, path string, now time.Time) Verdict {
	this := remembered{Boot: bootID(), Device: deviceState(), At: now}
	if r, ok := recall(path); ok && r.Boot == this.Boot && r.Device == this.Device {
		age, keep := now.Sub(r.At), keepBad
		if r.Verdict.Usable {
			keep = keepGood
		}
		if age >= 0 && age < keep {
			return r.Verdict
		}
	}
	this.Verdict = Judge(ctx)
	if ctx.Err() == nil {
		_ = note(path, this) // the next one judges again
	}
	return this.Verdict
}

func recall(path string) (r remembered, ok bool) {
	b, err := os.ReadFile(path)
	return r, err == nil && json.Unmarshal(b, &r) == nil
}

func note(path string, r remembered) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".kvm")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // absent: never the same as a remembered one that is not
	return strings.TrimSpace(string(b))
}

func deviceState() string {
	st, err := os.Stat(Device)
	if err != nil {
		return err.Error()
	}
	return st.Mode().String() + " " + st.ModTime().UTC().String()
}
