package guestclient

import (
	"context"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"time"

	"connectrpc.com/connect"

	filesystempb "github.com/tartarus-sandbox/tartarus/api/gen/filesystem"
)

// Entry is a file, folder or link of the guest. Name and Path are what the guest says: they may hold anything.
type Entry struct {
	Name     string
	Path     string
	Mode     fs.FileMode // type and permissions
	Size     int64
	Owner    string
	Group    string
	Modified time.Time
	Target   string // of a symbolic link
}

func entryOf(e *filesystempb.EntryInfo) Entry {
	mode := fs.FileMode(e.GetMode()) & fs.ModePerm
	switch {
	case e.GetIsSymlink():
		mode |= fs.ModeSymlink
	case e.GetType() == filesystempb.FileType_FILE_TYPE_DIRECTORY:
		mode |= fs.ModeDir
	case e.GetType() != filesystempb.FileType_FILE_TYPE_FILE:
		mode |= fs.ModeIrregular
	}
	return Entry{
		Name: e.GetName(), Path: e.GetPath(), Mode: mode, Size: e.GetSize(), Owner: e.GetOwner(), Group: e.GetGroup(),
		Modified: e.GetModifiedTime().AsTime(), Target: e.GetSymlinkTarget(),
	}
}

// ask makes a request in the name of user.
func ask[T any](user string, msg *T) *connect.Request[T] {
	req := connect.NewRequest(msg)
	setUser(req.Header(), user)
	return req
}

// Stat describes a path; a symbolic link is not followed. An empty user is the sandbox's default one, and a relative
// path starts at that user's home. Absent is tartarus.NotFound.
func (c *Client) Stat(ctx context.Context, user, path string) (Entry, error) {
	res, err := c.fs.Stat(ctx, ask(user, &filesystempb.StatRequest{Path: path}))
	if err != nil {
		return Entry{}, callError(err)
	}
	return entryOf(res.Msg.GetEntry()), nil
}

// List describes what is in a folder, and below it down to depth.
func (c *Client) List(ctx context.Context, user, path string, depth int) ([]Entry, error) {
	res, err := c.fs.ListDir(ctx, ask(user, &filesystempb.ListDirRequest{Path: path, Depth: uint32(max(depth, 1))}))
	if err != nil {
		return nil, callError(err)
	}
	entries := make([]Entry, 0, len(res.Msg.GetEntries()))
	for _, e := range res.Msg.GetEntries() {
		entries = append(entries, entryOf(e))
	}
	return entries, nil
}

// MakeDir makes a folder and those above it. One that exists is a tartarus.Conflict with the code already_exists.
func (c *Client) MakeDir(ctx context.Context, user, path string) error {
	_, err := c.fs.MakeDir(ctx, ask(user, &filesystempb.MakeDirRequest{Path: path}))
	return callError(err)
}

// Move renames.
func (c *Client) Move(ctx context.Context, user, source, destination string) error {
	_, err := c.fs.Move(ctx, ask(user, &filesystempb.MoveRequest{Source: source, Destination: destination}))
	return callError(err)
}

// Remove removes a file or a whole folder. What does not exist is no error.
func (c *Client) Remove(ctx context.Context, user, path string) error {
	_, err := c.fs.Remove(ctx, ask(user, &filesystempb.RemoveRequest{Path: path}))
	return callError(err)
}

// Read opens a regular file. The caller closes it; a read that breaks off returns an error, never a short file.
func (c *Client) Read(ctx context.Context, user, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.fileURL(user, path), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	res, err := c.send(req)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// Write makes or replaces a file, and makes the folders above it.
func (c *Client) Write(ctx context.Context, user, path string, content io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.fileURL(user, path), content)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	res, err := c.send(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

func (c *Client) fileURL(user, path string) string {
	query := url.Values{"path": {path}}
	if user != "" {
		query.Set("username", user)
	}
	return c.base + "/files?" + query.Encode()
}
