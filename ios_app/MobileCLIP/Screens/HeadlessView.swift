import Foundation
import MobileCLIPAppCore
import MobileCLIPCoreML
import SwiftUI
import UIKit

/// A host started the app: do what it asks, tell it how it goes, and end.
struct HeadlessView: View {
    let phone: PhoneState
    var request: LaunchRequest?
    /// Why the request is none.
    var reason = ""
    @State private var told = ""

    var body: some View {
        VStack(spacing: 16) {
            Text("Measuring for a computer").font(.headline)
            Text(told).font(.footnote).multilineTextAlignment(.center)
            Text("Leave the app in front and the phone alone.").font(.footnote).foregroundStyle(.secondary)
        }
        .padding()
        .task { await run() }
    }

    private func run() async {
        UIApplication.shared.isIdleTimerDisabled = true
        guard let request else {
            Console.write(reason)
            exit(2)
        }
        let (lines, teller) = AsyncStream.makeStream(of: String.self, bufferingPolicy: .bufferingNewest(1))
        let listening = Task { for await line in lines { told = line } }
        let headless = Headless(request, documents: URL.documentsDirectory)
        let phone = phone
        let code = try? await PhoneBenchHost.onThread {
            headless.run(host: { PhoneBenchHost(phone) }) { line in
                Console.write(line)
                teller.yield(line)
            }
        }
        listening.cancel()
        exit(code ?? 1)
    }
}

private enum Console {
    /// At once: the standard library keeps lines back when no terminal reads them.
    static func write(_ line: String) { try? FileHandle.standardOutput.write(contentsOf: Data("\(line)\n".utf8)) }
}
