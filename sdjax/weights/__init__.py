"""Files to parameter trees and back."""
