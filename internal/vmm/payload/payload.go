// Package payload is a guest of one page for tests and benchmarks of virtual machine monitors, and the words to talk with it on its
// serial port. It needs no kernel, so it runs where a stand-in for hardware virtualisation cannot run Linux; it is
// never anybody's sandbox.
package payload

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// base is where the guest is linked to and loaded.
const base = 0x1000000

// MinMemoryMB is the least memory that the guest needs: its pattern ends at 48 MiB.
const MinMemoryMB = 64

// ELF is the guest as a monitor loads it: one segment, entered at its beginning.
func ELF() []byte {
	const header, program = 64, 56
	const at = 4096 // of the segment in the file: congruent to its address, as loaders want it
	le := binary.LittleEndian
	out := bytes.NewBuffer(nil)
	out.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9)) // 64 bit, little endian
	for _, v := range []any{
		uint16(2), uint16(62), uint32(1), // executable, x86-64
		uint64(base), uint64(header), uint64(0), // entry, program headers, no sections
		uint32(0), uint16(header), uint16(program), uint16(1), uint16(64), uint16(0), uint16(0),
		uint32(1), uint32(7), // load; read, write, execute
		uint64(at), uint64(base), uint64(base), uint64(len(code)), uint64(len(code)), uint64(4096),
	} {
		_ = binary.Write(out, le, v) // to memory
	}
	out.Write(make([]byte, at-out.Len()))
	out.Write(code)
	return out.Bytes()
}

// Console is the serial port of a machine that runs the guest.
type Console interface {
	// Write sends to the guest.
	Write(b []byte) (int, error)
	// End is how many bytes the guest has sent so far.
	End() int64
	// Next returns what the guest sent behind offset at, waiting for it, and the offset behind that. What is no longer kept is left out.
	Next(ctx context.Context, at int64) ([]byte, int64, error)
}

// Ask sends a line and returns the guest's answer to it. Only one question can be under way on a console.
func Ask(ctx context.Context, c Console, line string) (string, error) {
	at := c.End()
	if _, err := c.Write([]byte(line + "\n")); err != nil {
		return "", fmt.Errorf("ask guest: %w", err)
	}
	var heard []byte
	for {
		b, next, err := c.Next(ctx, at)
		if err != nil {
			return "", fmt.Errorf("ask guest %q, which said %q: %w", line, heard, err)
		}
		heard, at = append(heard, b...), next
		for l := range strings.Lines(string(heard)) {
			// An answer may come behind something else's unfinished line.
			if _, answer, ok := strings.Cut(l, "="); ok && strings.HasSuffix(l, "\n") {
				return strings.TrimSpace(answer), nil
			}
		}
	}
}

// Count asks how far the guest has counted.
func Count(ctx context.Context, c Console) (int, error) {
	s, err := Ask(ctx, c, "c")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(s)
}

// Do has the guest do something that it answers with "ok".
func Do(ctx context.Context, c Console, line string) error {
	s, err := Ask(ctx, c, line)
	if err == nil && s != "ok" {
		err = fmt.Errorf("ask guest %q: it says %q", line, s)
	}
	return err
}

// The guest's lines.
const (
	Fill   = "p" // write the pattern over 16 MiB of memory
	Verify = "v" // compare the memory with the pattern
	Reset  = "x" // end the machine; there is no answer
)

// Keep is the line that has the guest keep a text of up to 55 bytes in place.
func Keep(place byte, text string) string { return "s " + string(place) + " " + text }

// Give is the line that asks for what place holds.
func Give(place byte) string { return "g " + string(place) }

// Dirty is the line that spoils one page of the pattern.
func Dirty(page byte) string { return "d " + string(page) }
