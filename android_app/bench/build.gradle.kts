plugins { alias(libs.plugins.android.application) }

android {
    namespace = "org.mobileclip.bench"
    compileSdk = 37
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    defaultConfig {
        applicationId = "org.mobileclip.bench" // mobileclip bench looks for it
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "1"
        ndk.abiFilters += setOf("arm64-v8a", "x86_64")
    }
    // adb reaches the folder of a debuggable app only; what is timed is native code, which is the same
    buildTypes {
        release {
            isDebuggable = true
            signingConfig = signingConfigs.getByName("debug")
        }
    }
    packaging.jniLibs {
        useLegacyPackaging = false // libraries lie in the APK uncompressed and aligned to pages of 16 KB
        pickFirsts += "**/libc++_shared.so"
    }
}

dependencies { implementation(project(":phone")) }
