//go:build !linux

package peek

import "errors"

// A Looker looks at connections. Here it cannot.
type Looker struct{}

// Open returns errors.ErrUnsupported.
func Open() (*Looker, error) { return nil, errors.ErrUnsupported }

// Look returns errors.ErrUnsupported.
func (*Looker) Look(*Conn) (Seen, error) { return Seen{}, errors.ErrUnsupported }

// Close does nothing.
func (*Looker) Close() error { return nil }
