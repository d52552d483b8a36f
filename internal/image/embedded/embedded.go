// Package embedded carries the programs that go into templates inside our own binary.
// It never gives out a program that is not there: a build without them says so and how to mend it.
//
// build.sh fills the folder bin; make build calls it before the main binary is compiled. The folder is not
// kept in version control, apart from its README.
package embedded

import (
	"embed"
	"runtime"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

//go:embed bin/*
var files embed.FS

// Guest is the guest agent, a static Linux program for this machine's processor.
func Guest() ([]byte, error) { return read("tartarus-guest") }

// GuestDigest is the SHA-256 of Guest in hexadecimal digits.
func GuestDigest() (string, error) { return digest("tartarus-guest") }

// Tiny is the userland of the template tiny, a static Linux program for this machine's processor.
func Tiny() ([]byte, error) { return read("tartarus-tiny") }

// TinyDigest is the SHA-256 of Tiny in hexadecimal digits.
func TinyDigest() (string, error) { return digest("tartarus-tiny") }

// digest is what build.sh wrote beside the program: hashing 20 MB at every start would cost 10 ms.
func digest(name string) (string, error) {
	b, err := read(name + ".sha256")
	if err != nil {
		return "", err
	}
	hex, _, _ := strings.Cut(string(b), " ")
	return hex, nil
}

func read(name string) ([]byte, error) {
	b, err := files.ReadFile("bin/" + name)
	if err != nil {
		return nil, &tartarus.Error{Kind: tartarus.Unsupported, Err: err, Message: strings.TrimSuffix(name, ".sha256") + " is not in this build (" +
			runtime.GOOS + "/" + runtime.GOARCH + "): run make build"}
	}
	return b, nil
}
